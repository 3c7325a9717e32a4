"""The parts of a kernel: its plain kernels by group, their rules and scalars."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.core import Now
from jaxopt_keras.engine.cores.leafwise import At, first_scalars, present
from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.partitioned import partition_of
from jaxopt_keras.language.rule import Rule
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


def advanced(kernel: Kernel, hyper: dict[str, Any], step: Any) -> dict[str, Any]:
    """The rule's scalars after `step` updates. They depend only on the step and on the hyperparameters."""
    rule = rule_of(kernel)
    if not isinstance(rule, Rule) or (start := first_scalars(rule.bind(hyper))) is None:
        return {}
    dtype, schedule = jnp.result_type(float), kernel.core.schedule

    def once(i: Any, scalars: Any) -> Any:
        rate = hyper.get("learning_rate") if schedule is None else jnp.asarray(schedule(i), dtype)
        now = Now((i + 1).astype(dtype), rate, hyper.get("weight_decay"), hyper)
        return jax.tree.map(lambda x: x.astype(dtype), rule.bind(hyper).advance(scalars, At.of(now, scalars)))

    return present(jax.lax.fori_loop(jnp.int32(0), jnp.asarray(step, jnp.int32), once, start))
