"""Injected hyperparameters, which the state keeps: validate, replace, and merge them with the kernel's own."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.programs.partitioned import STEP, partition_of
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import Complemented, Complements
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule, as_scalar, fields_of


def check(wanted: list[str], hyperparams: dict[str, Any]) -> None:
    """Raises a ValueError if the hyperparameters in the state do not have the names that the kernel injects."""
    if wanted != (found := names(hyperparams)):
        raise ValueError(
            f"`state.hyperparams` must have the hyperparameters that this kernel injects: {wanted}. Received: {found}. "
            "Make the kernel with another `inject_hyperparams`, or convert the state: "
            "`state._replace(hyperparams=kernel.init(params).hyperparams)`."
        )


def replaced(program: Any, hyperparams: dict[str, Any], hyper: dict[str, Any]) -> dict[str, Any]:
    """`hyperparams` with other values; with groups, in every group that has all of the names."""
    partition = partition_of(program)
    if partition is None:
        return _checked(program, hyperparams, hyper)
    having, fixed = [g for g, values in hyperparams.items() if hyper.keys() <= values.keys()], program.schedules()
    matching = [g for g in having if not hyper.keys() & fixed.get(g, {}).keys()] or having
    if not matching:
        known = {group: sorted(hyperparams.get(group, ())) for group in partition.names}
        raise ValueError(
            f"No group has the injected hyperparameters {sorted(hyper)}. The groups have {known}. Make the kernel "
            "of a group with `inject_hyperparams`, or use `kernel.replace(...)`, which needs no injection."
        )
    return hyperparams | {group: _checked(partition.groups[group], hyperparams[group], hyper) for group in matching}


def in_group(program: Any, hyperparams: dict[str, Any], group: str, hyper: dict[str, Any]) -> dict[str, Any]:
    """`hyperparams` with other values in one group.

    Raises:
        ValueError: if there is no such group, a name is not injected, or a value is out of its range.
    """
    partition = partition_of(program)
    if partition is None or group not in partition.names:
        raise ValueError(f"There is no group {group!r}. The groups are {[*(partition.names if partition else ())]}")
    return hyperparams | {group: _checked(partition.groups[group], hyperparams.get(group, {}), hyper)}


def _checked(program: Any, known: dict[str, Any], hyper: dict[str, Any]) -> dict[str, Any]:
    rule = getattr(plain_programs(program)[0].core, "rule", None)
    fields = fields_of(Options) | (rule.declared() if isinstance(rule, Rule) else {})
    for name, value in hyper.items():
        if name in program.schedules(injected=False):
            raise ValueError(
                f"`{name}` is a schedule, and each step computes it anew. Received: {name}={value!r}. Make the kernel "
                f"with a number, `{name}={value!r}`, and `inject_hyperparams={name!r}`: it continues from this state."
            )
        if name not in known:
            raise ValueError(
                f"`{name}` is not in the state, which has {sorted(known)}. Received: {name}={value!r}. Use a kernel "
                f"with other numbers, `kernel.replace({name}=...)`, which compiles nothing. Or make the kernel with "
                f"`inject_hyperparams={name!r}` and a number."
            )
    return known | to_state({n: as_scalar(fields[n], fields[n].check(n, value)) for n, value in hyper.items()})


def merged(hyper: dict[str, Any], injected: dict[str, Any]) -> dict[str, Any]:
    """`hyper` with the values of `injected`, but for scheduled ones; with groups, group by group."""
    return hyper | {
        n: merged(hyper[n], x) if isinstance(x, dict) else _value(hyper[n], x)
        for n, x in injected.items()
        if n in hyper
    }


def scheduled(schedules: dict[str, Any], state: State) -> dict[str, Any]:
    """The scheduled hyperparameters in the last update before `state`; in the first update, if there was none."""

    def value(function: Any, count: Any) -> Any:
        return to_state(function(jnp.maximum(count - 1, 0)))

    return {
        name: {n: value(f, state.scalars[name][STEP]) for n, f in own.items()}
        if isinstance(own, dict)
        else value(own, state.count)
        for name, own in schedules.items()
    }


def compiled_schedules(schedules: dict[str, Any]) -> Callable[[State], dict[str, Any]]:
    """`scheduled` as a jitted function of the state, also of one of `jax.ShapeDtypeStruct`s."""
    run = jax.jit(functools.partial(scheduled, schedules))
    return lambda x: jax.eval_shape(run, x) if isinstance(x.count, jax.ShapeDtypeStruct) else run(x)


def joined(hyperparams: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`hyperparams` with those of `new`; with groups, group by group."""
    return hyperparams | {n: hyperparams.get(n, {}) | x if isinstance(x, dict) else x for n, x in new.items()}


def _value(like: Any, x: Any) -> Any:
    """An injected value as the compiled step takes it. A decay that the user set as a number gets its complement."""
    if not isinstance(like, Complemented):
        return x
    return Complemented(*x) if isinstance(x, Complements) else Complemented(x, 1 - x)


def to_state(hyper: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the state keeps them: without types of the compiled step."""
    pair = lambda x: Complements(x.value, x.complement) if isinstance(x, Complemented) else x
    return jax.tree.map(pair, hyper, is_leaf=lambda x: isinstance(x, Complemented))


def names(*trees: dict[str, Any]) -> list[str]:
    """The names of hyperparameters, sorted; of groups, `group/name`."""
    items = (item for tree in trees for item in tree.items())
    return sorted(f"{n}/{inner}" if inner else n for n, x in items for inner in (x if isinstance(x, dict) else [""]))
