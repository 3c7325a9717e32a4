"""The parts of a kernel: its plain kernels by group, their rules and scalars."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.checkpoint.names import STEP, scalar_name
from jaxopt_keras.engine.core import Now
from jaxopt_keras.engine.cores.leafwise import At, first_scalars, present
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.partitioned import partition_of
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, WEIGHTS, window_length
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.modifier import is_joint
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.injection import merged
from jaxopt_keras.pure.kernel import Kernel


def groups(kernel: Kernel) -> dict[str, Kernel]:
    """The plain kernels by group name. Without groups, the kernel itself under ""."""
    found = partition_of(kernel.program)
    return {"": kernel} if found is None else {name: Kernel(program) for name, program in found.groups.items()}


def group_of(kernel: Kernel, path: str) -> str:
    """The group name of the parameter at `path`; "" without groups."""
    found = partition_of(kernel.program)
    return "" if found is None else found.router.of(path)


def rule_of(kernel: Kernel) -> Any:
    """The rule of a plain kernel; for frozen parameters, a rule without slots."""
    return Rule() if isinstance(kernel.program, Frozen) else kernel.rule


def of_group(x: dict[str, Any], group: str) -> dict[str, Any]:
    """The hyperparameters or scalars of one group; all of them if `group` is ""."""
    return x.get(group, {}) if group else x


def adjusted_scalars(
    kernels: dict[str, Kernel], state: State, new: dict[str, Any], weighted: set[str]
) -> dict[str, Any]:
    """The scalars of a restored `state` that follow from others; `new` has those that were saved.

    Those of rules that were not saved are computed for `state.count` updates. Micro-steps start at 0 if more were saved
    than the kernel accumulates, or if sums of weighted gradients were saved for a kernel without weights. The saved
    calls of a kernel without weights weigh 1.

    Args:
        weighted: the groups for which weights were saved.
    """
    found = {}
    for group, kernel in kernels.items():
        own = of_group(state.scalars, group)
        step, names = own[STEP] if group else state.count, {n: scalar_name(group, n) for n in own}
        if missing := [n for n in own if names[n] not in new]:
            hyper = merged(kernel.hyper(), of_group(state.hyperparams, group))
            scalars = _advanced(kernel, hyper, step)
            found |= {names[n]: scalars[n] for n in missing if n in scalars}
        if MICRO_STEP not in own:
            continue
        if WEIGHTS in missing:
            found[names[WEIGHTS]] = own[MICRO_STEP].astype(own[WEIGHTS].dtype)
        others = group in weighted and WEIGHTS not in own
        if others or int(own[MICRO_STEP]) >= window_length(kernel.options, step):
            found[names[MICRO_STEP]] = jnp.zeros_like(own[MICRO_STEP])
    return found


def _advanced(kernel: Kernel, hyper: dict[str, Any], step: Any) -> dict[str, Any]:
    """The rule's scalars after `step` updates, if they depend only on the step and on the hyperparameters."""
    rule = rule_of(kernel)
    if not isinstance(rule, Rule) or is_joint(rule) or (start := first_scalars(rule.bind(hyper))) is None:
        return {}
    dtype, (program,) = jnp.result_type(float), plain_programs(kernel.program)

    def once(i: Any, scalars: Any) -> Any:
        numbers = program.at(hyper, i)
        now = Now((i + 1).astype(dtype), numbers.get("learning_rate"), numbers.get("weight_decay"), numbers)
        return jax.tree.map(lambda x: x.astype(dtype), rule.bind(numbers).advance(scalars, At.of(now, scalars)))

    return present(jax.lax.fori_loop(jnp.int32(0), jnp.asarray(step, jnp.int32), once, start))
