"""Settings of an optimizer: its learning rate, hyperparameters and options, and the kernel that they define.

Setting a number compiles nothing.
"""

import dataclasses
import re
from collections.abc import Sequence
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.stages.accumulate import MICRO_STEP, WEIGHTS
from jaxopt_keras.engine.stages.average import AVERAGE
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.unused_patterns import Unused, unused, warn_of
from jaxopt_keras.language.fields import RATE as RATE_NAME
from jaxopt_keras.language.fields import is_function
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import Count, Field, Rule, as_scalar, with_python_numbers
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.configs import EXCLUDED, RATE_FIELD, Configs
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.custom.older_names import hyper_key
from jaxopt_keras.stateful.custom.overrides import overrides
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.sources import separated
from jaxopt_keras.stateful.state_views import RATE, SCHEDULED, View, slots_of, with_slots, without_masked
from jaxopt_keras.stateful.transactions import OPTIONS
from jaxopt_keras.stateful.variable import check, check_iterable, value_of
from jaxopt_keras.stateful.variable_kinds import Handle, handle
from jaxopt_keras.storage import formats

COUNT = Field.read(Count)
WINDOW_OPTIONS = ("gradient_accumulation_steps", "weighted_accumulation")


class ExcludedPaths(NamedTuple):
    """Paths of variables without weight decay, as a function for `Options`. Equal sets give equal programs."""

    paths: frozenset[str]

    def __call__(self, path: str, p: Any) -> bool:
        return path in self.paths


class Exclusion(NamedTuple):
    """Arguments of `exclude_from_weight_decay`."""

    variables: tuple[Any, ...] = ()
    patterns: tuple[str, ...] = ()  # regular expressions, searched for in names
    paths: frozenset[str] = frozenset()  # of excluded variables that a copy has not registered yet

    def path_of(self, path: str) -> str | None:
        """Return that of `paths` which names a variable, or None. In a loaded Keras model it lacks the model's name."""
        return next((x for x in sorted(self.paths) if x == path or x.endswith(f"/{path}")), None)

    def unused(self, names: dict[str, str]) -> list[Unused]:
        """Return what selects none of the variables with these names, by path."""
        left = self.paths - {self.path_of(path) for path in names}
        found = [Unused("var_list", path, tuple(names)) for path in sorted(left)]
        return found + unused("var_names", self.patterns, names.values())


class Settings(Configs):
    """Settings of an optimizer: learning rate, hyperparameters, options, exclusions from weight decay."""

    @property
    @locked
    def learning_rate(self) -> Any:
        """Rate of the next step: an assignable view, or the present value of the schedule or function."""
        if overrides(type(self), "_get_current_learning_rate"):
            return self._get_current_learning_rate()
        return self._present_rate()

    def _present_rate(self) -> Any:
        if RATE_NAME in self._sources and not self._in_hooks:  # in hooks the view has the step's rate
            return self.view(SCHEDULED).value
        if "learning_rate" not in self._kept.hyperparams:
            raise AttributeError(
                f"{self.name} has no `learning_rate`: an optax transformation contains its rate "
                "(`optax.inject_hyperparams` makes it settable)."
            )
        return self.view(RATE)

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._set_rate(value)

    def _set_rate(self, value: Any) -> None:
        if isinstance(self._rule, Foreign):
            raise AttributeError(
                f"{self.name} has no `learning_rate` to set: an optax transformation contains its rate. Received: "
                f"learning_rate={value!r}"
            )
        rate = self._configure_rate(value)
        if rate is not None:
            hyperparams = self._kept.hyperparams | {"learning_rate": as_scalar(RATE_FIELD, rate)}
            self._set_state(self._kept._replace(hyperparams=hyperparams))

    lr = _learning_rate = learning_rate  # the names in hooks of earlier Keras versions

    def _configure_rate(self, value: Any) -> Any:
        """Make `value`, a number, schedule or function, the source of the rate. Return the number, or None."""
        value = value_of(value)
        function = is_function(RATE_FIELD, value)
        number = None if function else RATE_FIELD.check(RATE_NAME, value)
        self._set_sources({RATE_NAME: value} if function else {}, RATE_NAME)
        if isinstance(self._rule, Rule):
            rule = self._rule.bind({"learning_rate": 1e-3 if number is None else number})
            object.__setattr__(self, "_rule", rule)
        elif isinstance(self._rule, Hooks):
            self._rule.rate = 1e-3 if number is None else number
        return number  # nothing is compiled again: programs take the rate as an argument

    def _hyper(self, state: State) -> dict[str, Any]:
        """Return the hyperparameters of the next step."""
        return state.hyperparams | self._scheduled(state.count)

    def _scheduled(self, updates: Any) -> dict[str, Any]:
        """Return the hyperparameters that are functions, in the update after `updates` others."""
        return self._sources.at(self._options.schedule_step(updates))

    def _set_sources(self, functions: dict[str, Any], *numbers: str) -> None:
        """Add hyperparameters that are functions; those named in `numbers`, if not among these, are none any more."""
        own = self._rule.declared() if isinstance(self._rule, Rule) else {}
        fields = {RATE_NAME: RATE_FIELD} | OPTIONS | own
        object.__setattr__(self, "_sources", self._sources.updated(functions, numbers, fields))

    def _with_functions(self) -> tuple[Any, Options]:
        """Return the rule and the options, with functions in the place of their stand-ins."""
        rule = self._rule
        if isinstance(rule, Rule):
            rule = rule.bind({RATE_NAME: self._rate_given()} | self._sources.functions)
        return rule, self._options.bind(self._sources.functions)

    @property
    def _rate_source(self) -> Any:
        """A schedule, or a function without arguments; None: the rate is the number in `state.hyperparams`."""
        return self._sources.get(RATE_NAME)

    @property
    def iterations(self) -> View:
        """Number of updates made. Under accumulation that is not the number of calls."""
        return self._iterations

    @iterations.setter
    def iterations(self, value: Any) -> None:
        self._iterations.assign(COUNT.check("iterations", value_of(value)))

    @property
    def skipped(self) -> Any:
        """Number of calls that a guard skipped, as a view; 0 without a guard."""
        return self.view(("scalars", SKIPPED)) if SKIPPED in self._kept.scalars else 0

    @locked
    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Exclude variables from weight decay. A second call replaces the first.

        Args:
            var_list: variables to exclude.
            var_names: regular expressions; variables are excluded if one is found in their `name`.

        Raises:
            TypeError: if an argument is not such a list. ValueError: if an expression is not valid, or some but not
                all variables of a packed buffer with slots would be excluded.
        """
        is_list = isinstance(var_names, (str, list, tuple, set, frozenset, NoneType))
        check(is_list, "var_names", var_names, "a list of regular expressions")
        variables = tuple(handle(v).variable for v in check_iterable("var_list", () if var_list is None else var_list))
        patterns: Any = Options(exclude_from_weight_decay=var_names or ()).exclude_from_weight_decay
        with self._transaction():
            self.__dict__.update(_excluded=Exclusion(variables, patterns), _kernel_cache=None)
            self._kernel()  # raises if the exclusion does not fit
            if self._paths:  # otherwise the first step warns
                warn_of([x for x in self._unused(self._handles) if x.argument == "var_names"], stacklevel=2)

    def _portable_exclusion(self) -> Exclusion:
        """Return the exclusion with the paths of variables in the place of variables, for copies and configs."""
        variables, _, paths = self._excluded
        ids = {id(v) for v in variables}
        known = {k for k, h in self._handles.items() if id(h.variable) in ids}
        return self._excluded._replace(variables=(), paths=paths | known | {handle(v).path for v in variables})

    def _exclude_again(self, excluded: dict[str, Any] | None) -> None:
        """Exclude what `get_config` has; None: nothing."""
        if excluded is not None:
            check(isinstance(excluded, dict), EXCLUDED, excluded, "a dict of a config")
            self.exclude_from_weight_decay(var_names=excluded.get("var_names") or ())
            paths = frozenset(excluded.get("paths") or ())
            self.__dict__.update(_excluded=self._excluded._replace(paths=paths), _kernel_cache=None)

    @locked
    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Set variables to their averages; without `use_ema` do nothing."""
        if self._options.use_ema:
            var_list = list(check_iterable("var_list", var_list))
            averages = [self._state.slots[AVERAGE][self._key(v)] for v in var_list]
            for v, average in zip(var_list, averages, strict=True):
                h = self._handle(v)
                h.write(jnp.array(average, h.dtype))

    def _configure(self, rule: Any, options: Options, *changed: str) -> None:
        """Use new settings. Numbers compile nothing; slots that the settings add are created, others are kept.

        Args:
            rule, options: the settings, with a stand-in for each number that is a function and is not `changed`.
            *changed: the names of settings that may be functions, or may have been.
        """
        rule, of_rule = separated(rule) if isinstance(rule, Rule) else (rule, {})
        options, of_options = separated(options)
        rule, options = with_python_numbers(rule) if isinstance(rule, Rule) else rule, with_python_numbers(options)
        for name in getattr(rule, "required", ()):
            if getattr(options, name) is None:
                raise ValueError(f"`{name}` must be a number for {type(rule).__name__}. Received: {name}=None")
        kernel, old, state = Kernel(self._core(rule), self._effective(options)), self._kernel(), self._kept
        assigned = {n: x for n, x in state.hyperparams.items() if n in ("learning_rate", *map(hyper_key, self._hypers))}
        hyper = kernel.hyper() | assigned
        if kernel.skeleton == old.skeleton and not self._read_by_hooks(rule, options):
            kernel = old  # with its compiled functions
        else:
            state, fresh = self._with_initial_slots(kernel, self._handles)
            scalars = self._merged(fresh.scalars, state.scalars)
            if any(getattr(options, n) != getattr(self._options, n) for n in WINDOW_OPTIONS):
                scalars |= {n: x for n, x in fresh.scalars.items() if n in (MICRO_STEP, WEIGHTS)}  # a new window
            if options.own_counts and not self._options.own_counts:  # the updates so far were those of all
                counts = {k: jnp.copy(state.count) for k in state.slots[OWN_COUNT]}
                state = state._replace(slots=state.slots | {OWN_COUNT: counts})
            kept = {n: tree for n, tree in state.slots.items() if tree or n in fresh.slots}
            state = state._replace(scalars=scalars, slots=kept)
        self.__dict__.update(_rule=rule, _options=options, _kernel_cache=kernel)
        self._set_sources(of_rule | of_options, *changed)
        self._set_state(state._replace(hyperparams=hyper))

    def _with_initial_slots(self, kernel: Kernel, handles: dict[str, Handle]) -> tuple[State, State]:
        """Return the state with those slots that `kernel` creates for variables by path, and its initial state."""
        fresh, state = kernel.initial({k: h.read() for k, h in handles.items()}), self._state
        fresh = fresh._replace(slots=without_masked(fresh.slots))
        slots = {k: self._merged(slots_of(fresh, k), slots_of(state, k)) for k in handles}
        return with_slots(state, slots, fresh.slots | state.slots), fresh

    def _merged(self, fresh: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
        """Return `fresh`, with the values of `old` where it has them, and the arrays that a user created."""
        custom = {n: x for n, x in old.items() if n in self._custom_names}
        return custom | {n: _converted(old.get(n), x) for n, x in fresh.items()}

    def _kernel(self) -> Kernel:
        """Return the kernel of the present settings and variables."""
        kernel = self._kernel_cache
        if kernel is None:
            kernel = self.__dict__["_kernel_cache"] = Kernel(self._core(self._rule), self._effective(self._options))
        return kernel

    def _effective(self, options: Options, handles: dict[str, Handle] | None = None) -> Options:
        """Return the options, with the constraints and exclusions of the variables `handles`; None: all registered."""
        for h in self._handles.values():
            if isinstance(h.variable, Buffer) and (name := self._per_variable_option(options, h.variable)):
                raise ValueError(
                    f"`{name}` acts on each variable separately, but {self.name} has slots for the packed buffer "
                    f"`{h.path}` already. Set it before `build` and the first step."
                )
        items = (self._handles if handles is None else handles).items()
        excluded = frozenset(key for key, h in items if self._excludes(options, key, h.variable))
        constraints = tuple((f"^{re.escape(k)}$", h.constraint) for k, h in items if h.constraint is not None)
        return dataclasses.replace(
            options,
            flat_state=None,  # slots are packed before the step, if at all (`engine/slot_packing.py`)
            **self._own_stages(),
            exclude_from_weight_decay=ExcludedPaths(excluded) if excluded else (),
            constraints=options.constraints + constraints,
        )

    def _excludes(self, options: Options, key: str, variable: Any) -> bool:
        """Whether a variable is excluded from weight decay. In a buffer all variables are excluded, or none."""
        if isinstance(variable, Buffer):
            return self._excludes(options, variable.variables[0].path, variable.variables[0])
        excluded = self._excluded
        named = first_match(excluded.patterns, handle(variable).name) is not None or excluded.path_of(key) is not None
        return named or any(variable is v for v in excluded.variables) or not options.decays(key, variable)

    def _per_variable_option(self, options: Options, buffer: Buffer) -> str | None:
        """Return the name of a set option that depends on the boundaries between the variables of `buffer`, or None."""
        if options.clipnorm is not None:
            return "clipnorm"
        if any(v.constraint is not None or options.constraint(v.path) is not None for v in buffer.variables):
            return "constraints"
        if len({self._excludes(options, v.path, v) for v in buffer.variables}) > 1:
            return "exclude_from_weight_decay"
        return None


def _converted(old: Any, fresh: Any) -> Any:
    """Return the old array in the storage format of the fresh one; the fresh one if the shapes differ."""
    if jax.tree.structure(old) == jax.tree.structure(fresh):
        same = jax.tree.map(jnp.shape, old) == jax.tree.map(jnp.shape, fresh)
        return jax.tree.map(lambda x, y: x.astype(y.dtype), old, fresh) if same else fresh
    if old is None or getattr(old, "shape", None) != getattr(fresh, "shape", ()):
        return fresh
    return formats.quantize_like(formats.dequantize_slot(old, jnp.float32), fresh)
