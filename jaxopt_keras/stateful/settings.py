"""An optimizer's settings: its rate, its hyperparameters and options, and the kernel that they make.

Setting a number compiles nothing. Attributes go through `__getattr__` and `__setattr__`, since which ones there are
depends on the rule.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_keras import schedules
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Count, Field, Rate, Rule, as_scalar, fields_of
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.state_views import RATE, STEP, Place, View, slots_of, with_slots, without_masked
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import as_array, several, value_of
from jaxopt_keras.stateful.variable_kinds import Handle, handle
from jaxopt_keras.storage import formats

OPTIONS = fields_of(Options)
RATE_FIELD = Field.read(Rate)
COUNT = Field.read(Count)


class Excluded(NamedTuple):
    """The paths of variables that do not decay, as a function that `Options` takes; equal sets are equal programs."""

    paths: frozenset[str]

    def __call__(self, path: str, p: Any) -> bool:
        return path in self.paths


class Exclusion(NamedTuple):
    """What `exclude_from_weight_decay` was told."""

    variables: tuple[Any, ...] = ()
    pattern: str | None = None  # of names
    paths: frozenset[str] = frozenset()  # of excluded variables that a copy has not met yet


class Settings(Transactions):
    """The means of settings, for `Optimizer`."""

    name: str
    _rule: Any
    _rate_source: Any  # a schedule, or a function without arguments; None: the number in state.hyperparams
    _rate_now: Callable[[Any], Any]
    _options: Options
    _excluded: Exclusion
    _handles: dict[str, Handle]
    _own: list[str]
    _views: dict[Any, Any]
    _stand_ins: dict[str, Any]
    _kernel_cache: Kernel | None
    view: Callable[[Place], View]
    _handle: Callable[[Any], Handle]
    _key: Callable[[Any], str]
    _touched: Callable[[], None]
    _get_hyper: Callable[[str], Any]
    _set_hyper: Callable[[str, Any], None]

    @property
    def learning_rate(self) -> Any:
        """The rate of the next step: an assignable view of it, or what the schedule or function gives now."""
        if self._rate_source is not None and not self._in_hooks:  # hooks find the rate of their step in its place
            return self._hyper(self._kept)["learning_rate"]
        if "learning_rate" not in self._kept.hyperparams:
            raise AttributeError(
                f"{self.name} keeps its learning rate to itself: an optax transformation sets it where it is made "
                "(`optax.inject_hyperparams` makes it settable)."
            )
        return self.view(RATE)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(self._rule, Foreign):
            raise AttributeError(f"{self.name} keeps its learning rate to itself. Received: learning_rate={value!r}")
        rate = self._take_rate(value)
        if rate is not None:
            hyperparams = self._kept.hyperparams | {"learning_rate": as_scalar(RATE_FIELD, rate)}
            self._set_state(self._kept._replace(hyperparams=hyperparams))

    lr = learning_rate

    def _take_rate(self, value: Any) -> Any:
        """Notes a schedule or function; a number goes into the rule, and is returned."""
        value = value_of(value)
        if callable(value) and not isinstance(value, type):
            rate = jax.jit(lambda step: _one_rate(value(step)))
            object.__setattr__(self, "_rate_source", value)
            object.__setattr__(
                self, "_rate_now", rate if schedules.is_schedule(value) else lambda _: _one_rate(value())
            )
            number = None
        else:
            number = RATE_FIELD.check("learning_rate", value)
            object.__setattr__(self, "_rate_source", None)
        if isinstance(self._rule, Rule):
            rule = self._rule.bind({"learning_rate": 1e-3 if number is None else number})
            object.__setattr__(self, "_rule", rule)
        elif isinstance(self._rule, Hooks):
            self._rule.rate = 1e-3 if number is None else number
        return number  # the program stays: it takes the rate as an argument

    def _hyper(self, state: State) -> dict[str, Any]:
        """The hyperparameters of the next step."""
        if self._rate_source is None:
            return state.hyperparams
        return state.hyperparams | {"learning_rate": self._rate_now(state.count)}

    @property
    def iterations(self) -> View:
        """The number of updates made; under accumulation, not the number of calls."""
        return self.view(STEP)

    @iterations.setter
    def iterations(self, value: Any) -> None:
        self.view(STEP).assign(COUNT.check("iterations", value_of(value)))

    @property
    def skipped(self) -> Any:
        """The number of calls that a guard left out, as a view; 0 where there is no guard."""
        return self.view(("scalars", SKIPPED)) if SKIPPED in self._kept.scalars else 0

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Takes variables out of weight decay; a second call replaces the first.

        Args:
            var_list: the variables themselves.
            var_names: regular expressions, searched for in a variable's `name`.
        """
        if not isinstance(var_names, (str, list, tuple, set, frozenset, NoneType)):
            raise TypeError(f"`var_names` must be a list of regular expressions. Received: var_names={var_names!r}")
        variables = tuple(handle(v).variable for v in several("var_list", () if var_list is None else var_list))
        patterns: Any = Options(exclude_from_weight_decay=var_names or ()).exclude_from_weight_decay
        before = self._excluded
        object.__setattr__(self, "_excluded", Exclusion(variables, "|".join(f"(?:{x})" for x in patterns) or None))
        try:
            self._effective(self._options)
        except ValueError:
            object.__setattr__(self, "_excluded", before)
            raise
        object.__setattr__(self, "_kernel_cache", None)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Sets variables to their averages, if there are any (`use_ema`)."""
        if self._options.use_ema:
            var_list = list(several("var_list", var_list))
            averages = [self._state.slots[AVERAGE][self._key(v)] for v in var_list]
            for v, average in zip(var_list, averages, strict=True):
                h = self._handle(v)
                h.write(jnp.array(average, h.dtype))

    def __getattr__(self, name: str) -> Any:
        """A hyperparameter of the rule or an option, by its name."""
        given = getattr(type(self), name, None)
        if isinstance(given, property):  # it raised an AttributeError, which brought us here: let it say so
            return given.__get__(self)
        if "_rule" in self.__dict__:
            if isinstance(self._rule, Rule) and name in fields_of(type(self._rule)):
                return getattr(self._rule, name)
            if name in OPTIONS:
                return getattr(self._options, name)
            if name in self._hypers:
                return self._get_hyper(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if "_rule" not in self.__dict__:
            raise RuntimeError(
                f"`{type(self).__name__}.__init__` must call `super().__init__()` first. Received: {name}={value!r}"
            )
        if name.startswith("_") and _is_taken(type(self), name):
            raise AttributeError(
                f"`{name}` is taken: the library keeps something of its own there. Received: {name}={value!r}. Choose "
                "another name."
            )
        if hasattr(type(self), name) or name in self.__dict__:
            own = name not in ("name", "built") and not isinstance(getattr(type(self), name, None), property)
            object.__setattr__(self, name, value)
            if own:
                self._touched()
        elif isinstance(self._rule, Rule) and name in fields_of(type(self._rule)):
            self._configure(dataclasses.replace(self._rule, **{name: value_of(value)}), self._options)
        elif name in OPTIONS:
            self._configure(self._rule, dataclasses.replace(self._options, **{name: value_of(value)}))
        elif name in self._hypers:
            self._set_hyper(name, value)
        else:
            object.__setattr__(self, name, value)
            self._touched()

    def _configure(self, rule: Any, options: Options) -> None:
        """Takes new settings. Numbers compile nothing; what needs new slots gets them, and keeps the others."""
        rule, options = rule.plain() if isinstance(rule, Rule) else rule, options.plain()
        for name in getattr(rule, "required", ()):
            if getattr(options, name) is None:
                raise ValueError(f"`{name}` must be a number for {type(rule).__name__}. Received: {name}=None")
        kernel, old, state = Kernel(rule, self._effective(options)), self._kernel(), self._kept
        assigned = {n: x for n, x in state.hyperparams.items() if n in ("learning_rate", *self._hypers)}
        hyper = kernel.hyper() | assigned
        if kernel.skeleton == old.skeleton:
            kernel = old  # what is compiled stays
        else:
            state, fresh = self._state, kernel.init({k: h.read() for k, h in self._handles.items()})
            fresh = fresh._replace(slots=without_masked(fresh.slots))
            scalars = self._merged(fresh.scalars, state.scalars)
            if options.gradient_accumulation_steps != self._options.gradient_accumulation_steps:
                scalars |= {n: x for n, x in fresh.scalars.items() if n == MICRO_STEP}  # a new window begins
            slots = {k: self._merged(slots_of(fresh, k), slots_of(state, k)) for k in self._handles}
            state = with_slots(state._replace(scalars=scalars), slots, fresh.slots)
        for name, value in dict(_rule=rule, _options=options, _kernel_cache=kernel).items():
            object.__setattr__(self, name, value)
        self._set_state(state._replace(hyperparams=hyper))

    def _merged(self, fresh: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
        """`fresh` with what `old` has of it, and with what a user made."""
        own = {n: x for n, x in old.items() if n in self._own}
        return own | {n: _taken_over(old.get(n), x) for n, x in fresh.items()}

    def _kernel(self) -> Kernel:
        kernel = self._kernel_cache
        if kernel is None:
            kernel = Kernel(self._rule, self._effective(self._options))
            object.__setattr__(self, "_kernel_cache", kernel)
        return kernel

    def _effective(self, options: Options, handles: dict[str, Handle] | None = None) -> Options:
        """The options with what the variables themselves say: their constraints, and exclusions by identity or name."""
        handles = self._handles if handles is None else handles
        for h in handles.values():
            if isinstance(h.variable, Buffer) and (what := self._divides(options, h.variable)):
                raise ValueError(
                    f"`{what}` acts on each variable by itself, but {self.name} has slots for `{h.path}` as a whole "
                    "already. Set it before the first step, or `build`."
                )
        excluded = frozenset(key for key, h in handles.items() if self._excludes(options, key, h.variable))
        own = tuple((f"^{re.escape(k)}$", h.constraint) for k, h in handles.items() if h.constraint is not None)
        return dataclasses.replace(
            options,
            flat_state=None,  # slots come flat into the step, or not (`engine/slot_packing.py`)
            exclude_from_weight_decay=Excluded(excluded) if excluded else (),
            constraints=options.constraints + own,
        )

    def _excludes(self, options: Options, key: str, variable: Any) -> bool:
        """Whether a variable is taken out of weight decay; all of a buffer are, or none is."""
        if isinstance(variable, Buffer):
            return self._excludes(options, variable.variables[0].path, variable.variables[0])
        variables, pattern, paths = self._excluded
        named = pattern and re.search(pattern, handle(variable).name)
        return any(variable is v for v in variables) or key in paths or bool(named) or not options.decays(key, variable)

    def _divides(self, options: Options, buffer: Buffer) -> str | None:
        """The name of an option that sees where one variable of `buffer` ends, if there is one."""
        if options.clipnorm is not None:
            return "clipnorm"
        if any(v.constraint is not None or options.constraint(v.path) is not None for v in buffer.variables):
            return "constraints"
        if len({self._excludes(options, v.path, v) for v in buffer.variables}) > 1:
            return "exclude_from_weight_decay"
        return None


def _is_taken(cls: type, name: str) -> bool:
    """Whether the library has this name for itself: it declares it, or has a method of that name."""
    ours = [c for c in cls.__mro__ if c.__module__.startswith("jaxopt_keras.")]
    declared = any(name in vars(c) or name in inspect.get_annotations(c) for c in ours)
    found = getattr(cls, name, None)
    return declared and not (isinstance(found, property) and found.fset)


def _taken_over(old: Any, fresh: Any) -> Any:
    """The old array, in the form of the fresh one, if it is of its shape; else the fresh one."""
    if jax.tree.structure(old) == jax.tree.structure(fresh):
        same = jax.tree.map(jnp.shape, old) == jax.tree.map(jnp.shape, fresh)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), old, fresh) if same else fresh
    if old is None or getattr(old, "shape", None) != getattr(fresh, "shape", ()):
        return fresh
    return formats.quantize_like(formats.dequantize_slot(old, jnp.float32), fresh)


def _one_rate(value: Any) -> Any:
    """What a schedule or a function gave, as the compiled step takes it."""
    rate = as_array(value, "learning_rate")
    if rate.shape:
        raise ValueError(
            f"`learning_rate` must be one number. Received: an array of shape {rate.shape} of its function"
        )
    return rate.astype(jnp.result_type(float))
