"""What a user's own optimizer class finds on `Optimizer`: slots and variables to make, hyperparameters, build hooks."""

import contextlib
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from jaxopt_keras import schedules
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import EXTRAS, refuse_unknown
from jaxopt_keras.language.rule import Field, Number, as_scalar
from jaxopt_keras.stateful.copies import unique
from jaxopt_keras.stateful.custom.hooks import Hooks
from jaxopt_keras.stateful.state_views import AROUND, Place, View, has, slot_groups, slots_of, with_slots
from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import ArrayLike, Variable, as_array, as_dtype, several, value_of
from jaxopt_keras.stateful.variable_kinds import handle

NUMBER = Field.read(Number)
HOOKS = ("update_step", "_resource_apply_dense", "_resource_apply_sparse")


class Custom(Transactions):
    """The means of custom optimizers, for `Optimizer`."""

    name: str
    built: bool
    _rule: Any
    _paths: list[str]
    _own: list[str]
    _handles: dict[str, Any]
    _keys: dict[int, str]
    _kernel_cache: Any
    view: Callable[[Place], View]
    learning_rate: Any
    _rate_config: Callable[[], Any]
    _key: Callable[[Any], str]
    _register: Callable[[list[Any]], list[str]]
    build: Callable[[Any], None]

    # --- slots and variables ----------------------------------------------------------------------------------------

    def add_slot(self, var: Any, slot_name: str, initializer: Any = "zeros", shape: Any = None) -> View:
        """The slot `slot_name` of `var`, made if there is none.

        Args:
            var: a variable; a new one is registered.
            slot_name: its name.
            initializer: "zeros", "ones", an array, a number, or a function of (shape, dtype).
            shape: None: that of `var`.
        """
        if not isinstance(slot_name, str) or slot_name in AROUND:
            raise ValueError(
                f"`slot_name` must be a string, and not one of {[*AROUND]}. Received: slot_name={slot_name!r}"
            )
        if id(var) in self._keys and has(self._state, self._keys[id(var)], slot_name):
            return self.view(("slots", self._keys[id(var)], slot_name))
        if id(getattr(var, "buffer", None)) in self._keys:
            self._key(var)  # raises: the slot would have to be of the buffer
        h = self._handles[self._keys[id(var)]] if id(var) in self._keys else handle(var)
        array = _initial(initializer, h.shape if shape is None else shape, compute_dtype(h.dtype))
        self._register([var])
        key = self._key(var)
        self._set_state(with_slots(self._state, {key: slots_of(self._state, key) | {slot_name: array}}))
        self._note(slot_name)
        return self.view(("slots", key, slot_name))

    def get_slot(self, var: Any, slot_name: str) -> View:
        """A slot, as an assignable view.

        Raises:
            KeyError: if there is no such variable or slot; it names those that there are.
        """
        shared: Any = getattr(var, "buffer", None)
        if id(var) in self._keys or id(shared) not in self._keys:
            shared = None
        key = self._key(var if shared is None else shared)
        slots = slots_of(self._state, key)
        if slot_name not in slots:
            raise KeyError(f"`{slot_name}` is no slot of `{key}`. It has {sorted(slots)}")
        place = ("slots", key, slot_name)
        return self.view(place if shared is None else (*place, shared.pieces[id(var)]))

    def get_slot_names(self) -> list[str]:
        """The names of all slots: the optimizer's own, then those of `use_ema` and accumulation."""
        found = {name for name, tree in self._state.slots.items() if tree}
        groups = slot_groups(self._state, self._rule, self._own)
        return [name for group in (*groups, AROUND) for name in group if name in found]

    def add_variable(self, shape: Any, initializer: Any = "zeros", dtype: Any = None, name: str | None = None) -> View:
        """A variable of the optimizer's own, kept once."""
        if not isinstance(name, str | None):
            raise TypeError(f"`name` must be a string or None. Received: name={name!r}")
        name = unique(name or "variable", self._state.scalars)
        array = _initial(initializer, shape, jnp.result_type(float) if dtype is None else as_dtype(dtype))
        self._set_state(self._state._replace(scalars=self._state.scalars | {name: array}))
        self._note(name)
        return self.view(("scalars", name))

    def add_weight(
        self,
        name: str,
        shape: Any,
        dtype: Any = None,
        initializer: Any = "zeros",
        trainable: Any = None,
        synchronization: Any = None,
        aggregation: Any = None,
    ) -> View:
        """As `add_variable`, in the order of TF 2's arguments; the last three are accepted and mean nothing here."""
        return self.add_variable(shape, initializer, dtype, name)

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> View:
        """A new slot of `reference_variable`, as Keras 3 spells it: a name that is taken gets a number."""
        slots = slots_of(self._state, self._keys.get(id(reference_variable), ""))
        return self.add_slot(reference_variable, unique(name or "slot", slots), initializer)

    def add_optimizer_variables(self, trainable_variables: Sequence[Any], name: Any, initializer: Any = "zeros") -> Any:
        """A list of slots, one for each variable; for a list of names a tuple of lists."""
        if isinstance(name, str):
            variables = several("trainable_variables", trainable_variables)
            return [self.add_slot(v, name, initializer) for v in variables]
        if not (isinstance(name, (list, tuple)) and all(isinstance(n, str) for n in name)):
            raise TypeError(f"`name` must be a string or a list of strings. Received: name={name!r}")
        each = initializer if isinstance(initializer, (list, tuple)) else [initializer] * len(name)
        if len(each) != len(name):
            raise ValueError(f"`initializer` must have {len(name)} elements. Received: {len(each)}")
        return tuple(self.add_optimizer_variables(trainable_variables, n, i) for n, i in zip(name, each, strict=True))

    def assign(self, variable: Any, value: Any) -> None:
        variable.assign(value)

    def assign_add(self, variable: Any, value: Any) -> None:
        variable.assign_add(value)

    def assign_sub(self, variable: Any, value: Any) -> None:
        variable.assign_sub(value)

    def _get_variable_index(self, variable: Any) -> int:
        return self._paths.index(self._key(variable))

    def _note(self, name: str) -> None:
        if name not in self._own:
            self._own.append(name)

    # --- hyperparameters of TF 2 ------------------------------------------------------------------------------------

    def _set_hyper(self, name: str, value: Any) -> None:
        """Makes, or sets, a run-time hyperparameter; `_get_hyper` gives it to the hooks."""
        if name == "learning_rate":
            self.learning_rate = value
            return
        value = NUMBER.check(name, value_of(value))
        self._set_state(self._state._replace(hyperparams=self._state.hyperparams | {name: as_scalar(NUMBER, value)}))
        self.__dict__["_hypers"] = self._hypers | {name: value}

    @property
    def _hypers(self) -> dict[str, Any]:
        return self.__dict__.get("_hypers", {})

    def _get_hyper(self, name: str, dtype: Any = None) -> Any:
        """The current value of a hyperparameter."""
        value = self.learning_rate if name == "learning_rate" else self.view(("hyperparams", name))
        return value if dtype is None else jnp.asarray(value_of(value)).astype(getattr(dtype, "base_dtype", dtype))

    def _serialize_hyperparameter(self, name: str) -> Any:
        """The current value of a hyperparameter, for `get_config`."""
        return self._rate_config() if name == "learning_rate" else float(self._get_hyper(name))

    def _decayed_lr(self, dtype: Any) -> Any:
        """The learning rate of this step: a schedule has been called."""
        return self._get_hyper("learning_rate", dtype)

    def hook_hyper(self) -> dict[str, Any]:
        return {name: as_scalar(NUMBER, value) for name, value in self._hypers.items()}

    @property
    def _learning_rate(self) -> Any:  # what hooks of all generations call it
        return self.learning_rate

    @_learning_rate.setter
    def _learning_rate(self, value: Any) -> None:
        self.learning_rate = value

    # --- running the hooks ------------------------------------------------------------------------------------------

    def hook_variables(self, paths: list[str]) -> list[Any]:
        """The variables as the hooks know them: themselves, or stand-ins for other libraries' and for TF 2's hooks."""
        plain: Any = Tf2Typed if hasattr(self, "_resource_apply_dense") else Variable
        variables = {k: self._handles[k].variable for k in paths}
        return [v if isinstance(v, plain) else stand_in(self, k) for k, v in variables.items()]

    def _run_build_hooks(self, new: list[str], own_build: bool) -> None:
        """The subclass's own `build`, once, and `_create_slots` for new variables."""
        if not isinstance(self._rule, Hooks) or not new:
            return
        cls: Any = type(self)
        if own_build:
            if self.built:
                raise ValueError(
                    f"{cls.__name__} was built for {[k for k in self._paths if k not in new]}. Received: new "
                    f"variables {new}. Build it with all of them."
                )
            self.build(self.hook_variables(self._paths))
        self._create_slots_of(new)

    def _create_slots_of(self, new: list[str]) -> None:
        hook = getattr(self, "_create_slots", None)
        if new and hook is not None:
            hook(self.hook_variables(new))

    @contextlib.contextmanager
    def hooks_running(self) -> Iterator[None]:
        """While hooks are traced, they can assign, but make nothing; where one raises, nothing has changed."""
        with self._transaction():
            object.__setattr__(self, "_in_hooks", True)
            try:
                yield
            finally:
                object.__setattr__(self, "_in_hooks", False)

    def _touched(self) -> None:
        """An attribute of a custom optimizer has changed: what was traced with the old one is void."""
        if isinstance(self._rule, Hooks) and not self._in_hooks:
            object.__setattr__(self, "_kernel_cache", None)

    # --- arguments --------------------------------------------------------------------------------------------------

    def _tf2_rate(self, kwargs: dict[str, Any]) -> Any:
        """TF 2's `lr` and `decay`, out of the keyword arguments."""
        rate = kwargs.pop("lr", 0.001)
        decay = kwargs.pop("decay", 0.0)
        return schedules.InverseTimeDecay(rate, 1, decay) if decay else rate

    def _extras(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The options that Keras lacks, out of the keyword arguments.

        Raises:
            TypeError: for an argument that it does not have.
        """
        if kwargs.pop("decay", None) is not None:
            warnings.warn("`decay` is ignored, as in Keras 3: use a schedule.", stacklevel=4)
        refuse_unknown(type(self).__name__, kwargs, EXTRAS)
        return kwargs


class StandIn(ArrayLike):
    """A variable of another library as the hooks see it: by behaviour one of ours."""

    def __init__(self, optimizer: Any, path: str) -> None:
        self.optimizer, self.path = optimizer, path
        self.name = path.rsplit("/", 1)[-1]
        self.trainable = True

    def _peek(self) -> Any:
        return self.optimizer._handles[self.path].read()

    def _store(self, value: Any) -> None:
        self.optimizer._handles[self.path].write(value)

    def __reduce__(self) -> Any:
        return stand_in, (self.optimizer, self.path)


class Tf2Typed(ArrayLike):
    """What has TF's dtype, which knows its `base_dtype`."""

    @property
    def dtype(self) -> Any:
        return Tf2DType(super().dtype)


class Tf2Variable(Tf2Typed, Variable):
    """A variable as TF 2's hooks expect it."""


class Tf2StandIn(Tf2Typed, StandIn):
    """A stand-in as TF 2's hooks expect it."""


def stand_in(optimizer: Any, path: str) -> StandIn:
    """The one stand-in for the variable at `path`: a scope tells variables apart by identity."""
    stand_ins = optimizer.__dict__.setdefault("_stand_ins", {})
    if path not in stand_ins:
        made = (Tf2StandIn if hasattr(optimizer, "_resource_apply_dense") else StandIn)(optimizer, path)
        stand_ins[path] = made
        optimizer.__dict__.setdefault("_keys", {})[id(made)] = path
    return stand_ins[path]


class Tf2DType:
    """A dtype with TF's `base_dtype`; NumPy and JAX take it for what it is."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = self.base_dtype = jnp.dtype(dtype)
        self.name = self.dtype.name

    def __eq__(self, other: Any) -> bool:
        return self.dtype == getattr(other, "base_dtype", other)

    def __hash__(self) -> int:
        return hash(self.dtype)


def _initial(initializer: Any, shape: Any, dtype: Any) -> Any:
    try:
        shape = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"`shape` must be a tuple of integers. Received: shape={shape!r}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"`shape` must hold no negative number. Received: shape={shape!r}")
    if isinstance(initializer, str):
        if initializer not in ("zeros", "ones"):
            raise ValueError(
                f'`initializer` must be "zeros", "ones", an array or a function. Received: initializer={initializer!r}'
            )
        initializer = float(initializer == "ones")
    value = as_array(initializer(shape, dtype) if callable(initializer) else initializer, "initializer")
    if value.ndim and value.shape != shape:
        raise ValueError(f"`initializer` must give an array of shape {shape}. Received: shape {value.shape}")
    return jnp.array(jnp.broadcast_to(value, shape), dtype)
