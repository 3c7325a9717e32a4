"""The slot names and units of other libraries, and their conversion to ours.

Momenta differ by the learning rate: with s <- momentum s + g, Keras's SGD keeps -lr s, optax's and torch's s; Keras's
RMSprop keeps lr s, optax's -lr s, torch's s, where s sums g / sqrt(d). Conversion multiplies by the current rate, which
is exact if the rate never changed. Averages of gradients and of squares are the same in all libraries.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxopt_keras.checkpoint.kernels import group_of, groups, of_group, rule_of
from jaxopt_keras.checkpoint.names import FORMAT, STEP, VERSION, slot_name
from jaxopt_keras.engine.cores.leafwise import present
from jaxopt_keras.language.modifier import routed
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel

Table = Mapping[str, Mapping[str, str]]  # the name of a rule -> our slot -> their name


class Library(NamedTuple):
    """Another library's conventions, for the parameters of one kernel."""

    name: str
    table: Table
    kernel: Kernel
    hyper: Any  # the hyperparameters, for the rate
    step: Any
    saved_rate: float | None = None  # the rate of the other library, if it was saved

    def ours(self, params: dict[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """A checkpoint of the slots of `params`; slots that are missing in `theirs` are left out.

        Args:
            params: the parameters by path.
            theirs: the other library's arrays, by path and by their names.

        Raises:
            TypeError: if the kernel runs no `Rule`. ValueError: if the library has no such optimizer, or its slots have
            another meaning.
        """
        flat = {FORMAT: np.asarray(VERSION, np.int32), STEP: np.asarray(self.step, np.int32)}
        for path, p in params.items():
            rule = self._rule(path, p)
            like = jax.ShapeDtypeStruct(p.shape, compute_dtype(p.dtype))
            kept = () if type(rule) is Rule else present(jax.eval_shape(rule.init, like))  # frozen: no slots
            for own, other, factor in self._slots(path, rule, kept):
                if (x := theirs.get(path, {}).get(other)) is not None:
                    flat[slot_name(path, own)] = x * x.dtype.type(factor)
        return flat

    def theirs(self, path: str, p: Any, ours: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of the other library for the parameter at `path`, by their names, from `ours` by slot name.

        Args:
            p: the parameter, or any object with its shape and dtype.

        Raises:
            TypeError, ValueError: as in `ours`.
        """
        slots = self._slots(path, self._rule(path, p), ours)
        return {other: ours[own] / ours[own].dtype.type(factor) for own, other, factor in slots}

    def _rule(self, path: str, p: Any) -> Rule:
        rule = rule_of(groups(self.kernel)[group_of(self.kernel, path)])
        if not isinstance(rule, Rule):
            raise TypeError(f"Only a `Rule` can be converted. Received: {type(rule).__name__} for `{path}`")
        return routed(rule, path, p)

    def _slots(self, path: str, rule: Rule, kept: Iterable[str]) -> list[tuple[str, str, float]]:
        """The slots in `kept`: our name, their name, and the factor from their value to ours."""
        kind = kind_of(rule, self.table)
        names = self.table.get(kind, {})
        if unknown := [name for name in kept if name not in names]:
            raise ValueError(
                f"{type(rule).__name__} keeps {unknown} for `{path}`, which no known optimizer of {self.name} keeps. "
                f"Slots can be converted for the counterparts of {sorted(self.table)}"
            )
        rate = self._rate(path) if kept else 1.0
        return [(name, names[name], _factor(kind, rule.variant, name, self.name, rate)) for name in kept]

    def _rate(self, path: str) -> float:
        """The rate of the last update."""
        if self.saved_rate is not None:
            return self.saved_rate
        group = group_of(self.kernel, path)
        schedule = groups(self.kernel)[group].core.schedules().get("learning_rate")
        if schedule is None:
            return float(of_group(self.hyper, group).get("learning_rate", 1.0))
        return float(schedule(np.maximum(np.asarray(self.step, np.int32) - 1, 0)))


def kind_of(rule: Any, table: Table) -> str:
    """The name of the rule's class or nearest base class in the table; "" if there is none."""
    return next((cls.__name__ for cls in type(rule).__mro__ if cls.__name__ in table), "")


def _factor(kind: str, own: str, slot: str, library: str, rate: float) -> float:
    if slot == "velocity_hat" and (library == "optax") != (own == "optax"):
        variant = "optax" if library == "optax" else "keras"
        raise ValueError(
            f"AMSGrad's maximum is over other values in {library}: only optax corrects their bias first. Received: a "
            f"kernel with variant={own!r}. Use `variant={variant!r}`."
        )
    units = {
        ("SGD", "momentum"): {"keras": -rate, "optax": 1.0, "torch": 1.0},
        ("RMSprop", "momentum"): {"keras": rate, "optax": -rate, "torch": 1.0},
    }.get((kind, slot))
    if units is None:
        return 1.0
    mine, theirs = units[own if kind == "SGD" else "keras"], units[library]
    if mine == theirs:
        return 1.0
    if rate == 0:
        raise ValueError(f"The momentum of {kind} is divided by the rate, which must not be 0. Received: rate=0.0")
    return mine / theirs
