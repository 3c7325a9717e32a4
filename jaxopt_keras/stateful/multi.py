"""`MultiOptimizer` and `OptimizerMap`: parameter groups of the stateful face."""

import dataclasses
import re
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import jax.numpy as jnp

from jaxopt_keras.engine.programs.frozen import Frozen
from jaxopt_keras.engine.programs.multi import Multi
from jaxopt_keras.engine.programs.partitioned import STEP
from jaxopt_keras.engine.stages.guard import SKIPPED
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.unused_patterns import Unused
from jaxopt_keras.language.option_values import check_pattern
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.call import Call
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.loss_scale import LossScaleOptimizer
from jaxopt_keras.stateful.optimizer import Optimizer
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.serialization import WRAPPERS, deserialize, serialize
from jaxopt_keras.stateful.state_views import slots_of, with_slots
from jaxopt_keras.stateful.variable import check
from jaxopt_keras.stateful.variable_kinds import Handle
from jaxopt_keras.stateful.wrappers import Wrapper


class OptimizerMap(MutableMapping):
    """A map from the paths of variables to optimizers.

    Args:
        default_optimizer: the optimizer of paths that no key matches.
        optimizer_map: `{path or regular expression: optimizer}`. A key that equals the path is taken first, then the
            first expression that is found in it (`re.search`), as in `partition`. The first step warns of a key that
            selects no variable.

    Keras's map needs an expression that matches the whole path; a config of Keras keeps that meaning.

    >>> import jaxopt_keras as jk
    >>> groups = OptimizerMap(jk.Adam(name="rest"), {"^encoder/": jk.SGD(name="slow")})
    >>> groups["encoder/kernel"].name, groups["decoder/kernel"].name
    ('slow', 'rest')

    Raises:
        TypeError: if a value is not an optimizer, or a key not a string. ValueError: if a key exists already or is not
            a regular expression, or an optimizer is itself a wrapper.
    """

    def __init__(self, default_optimizer: Optimizer, optimizer_map: dict[str, Optimizer] | None = None) -> None:
        check(isinstance(optimizer_map, dict | None), "optimizer_map", optimizer_map, "a dict")
        self.default_optimizer = _checked_inner("default_optimizer", default_optimizer)
        self._optimizers: dict[str, Optimizer] = {}
        for key, optimizer in (optimizer_map or {}).items():
            self[key] = optimizer

    def __getitem__(self, key: str) -> Optimizer:
        found = self.key_of(key)
        return self.default_optimizer if found is None else self._optimizers[found]

    def key_of(self, path: str) -> str | None:
        """Return the key that selects the optimizer of a path; None: the default optimizer."""
        return path if path in self._optimizers else first_match(self._optimizers, path)

    def __setitem__(self, key: str, optimizer: Optimizer) -> None:
        check_pattern("optimizer_map", key)
        if key in self._optimizers:
            raise ValueError(f"Each key may occur once. Received: {key!r} again, which has {self._optimizers[key]!r}")
        self._optimizers[key] = _checked_inner(key, optimizer)

    def __delitem__(self, key: str) -> None:
        del self._optimizers[key]

    def __len__(self) -> int:
        return len(self._optimizers)

    def __iter__(self) -> Iterator[str]:
        return iter(self._optimizers)

    def __call__(self, variable: Any) -> Optimizer:
        return self[variable.path]

    def __repr__(self) -> str:
        return f"OptimizerMap({self.default_optimizer!r}, {self._optimizers!r})"

    def get_config(self) -> dict[str, Any]:
        return {
            "default_optimizer": serialize(self.default_optimizer),
            "optimizer_map": {key: serialize(optimizer) for key, optimizer in self._optimizers.items()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "OptimizerMap":
        """Make a map from a config of this class, or from that of Keras's class, whose keys match whole paths."""
        of_keras = "class_name" in config
        config = config["config"] if of_keras else config
        groups = {key: deserialize(c, custom_objects) for key, c in config["optimizer_map"].items()}
        groups = _with_whole_paths(groups) if of_keras else groups
        return cls(deserialize(config["default_optimizer"], custom_objects), groups)


def _with_whole_paths(groups: dict[str, Optimizer]) -> dict[str, Optimizer]:
    """Convert the keys of Keras's map, each a path or an expression for whole paths. In Keras paths are tried first."""
    paths_first = sorted(groups, key=lambda key: re.escape(key) != key)
    return {f"^(?:{key})$": groups[key] for key in paths_first}


def _checked_inner(name: str, optimizer: Any) -> Optimizer:
    """Return `optimizer`, which must not be a wrapper; `name` is used in the error."""
    if not isinstance(optimizer, Optimizer):
        frozen = isinstance(optimizer, Kernel) and isinstance(optimizer.program, Frozen)
        hint = " To freeze variables set their `trainable=False`." if frozen else ""
        raise TypeError(f"`{name}` must have an `Optimizer`. Received: {optimizer!r}.{hint}")
    if isinstance(optimizer, (LossScaleOptimizer, MultiOptimizer)):
        raise ValueError(
            f"`{name}` must have a plain optimizer. Received: {optimizer!r}. Scale the loss of all groups together: "
            "`LossScaleOptimizer(MultiOptimizer(...))`."
        )
    return optimizer


class MultiOptimizer(Wrapper):
    """An optimizer for each group of variables. A step of all groups is one compiled call.

    Args:
        optimizer_map: an `OptimizerMap`, or a function of a variable that returns its optimizer. It is called once for
            each variable.
        loss_scale_factor: set on all inner optimizers, replacing their own, as in Keras.
        name: name of the optimizer; None: a name made from the class.

    If one inner optimizer has `skip_nonfinite`, gradients or results of any group that are not finite skip the step of
    all groups.

    >>> import jaxopt_keras as jk
    >>> w, b = jk.Variable([1.0], name="dense/kernel"), jk.Variable([1.0], name="dense/bias")
    >>> optimizer = jk.MultiOptimizer(jk.OptimizerMap(jk.SGD(0.5), {"bias$": jk.SGD(0.25)}))
    >>> int(optimizer.apply([[1.0], [1.0]], [w, b])), w.numpy().tolist(), b.numpy().tolist()
    (1, [0.5], [0.75])

    Raises:
        TypeError: if `optimizer_map` is neither of them.
    """

    def __init__(
        self,
        optimizer_map: OptimizerMap | Callable[[Any], Optimizer],
        loss_scale_factor: float | None = None,
        name: str | None = None,
    ) -> None:
        kind = "an `OptimizerMap`, or a function of a variable"
        check(callable(optimizer_map), "optimizer_map", optimizer_map, kind)
        options, inner = Options(loss_scale_factor=loss_scale_factor, name=name), []
        if isinstance(optimizer_map, OptimizerMap):
            inner = list(dict.fromkeys([*optimizer_map.values(), optimizer_map.default_optimizer]))
        for optimizer in inner:
            optimizer.loss_scale_factor = options.loss_scale_factor
        self._wrap(options, inner, _map=optimizer_map)

    _map: Any

    @property
    def optimizers(self) -> list[Optimizer]:
        """Inner optimizers: those of the map, then its default."""
        return list(self._inner)

    @property
    def learning_rate(self) -> Any:
        raise AttributeError(f"{self.name} has no learning rate of its own: each of its `optimizers` has one.")

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        raise AttributeError(
            f"{self.name} has no learning rate of its own: set it on its `optimizers`. "
            f"Received: learning_rate={value!r}"
        )

    lr = _learning_rate = learning_rate

    def _configure(self, rule: Any, options: Options, *changed: str) -> None:
        if dataclasses.replace(options, loss_scale_factor=self._options.loss_scale_factor) != self._options:
            super()._configure(rule, options, *changed)
        for optimizer in self._inner:
            optimizer.loss_scale_factor = options.loss_scale_factor
        object.__setattr__(self, "_options", options)

    def _choose_group(self, path: str, variable: Any) -> int:
        optimizer = self._map[path] if isinstance(self._map, OptimizerMap) else self._map(variable)
        if optimizer not in self._inner:
            _checked_inner("optimizer_map", optimizer).loss_scale_factor = self._options.loss_scale_factor
            self._inner.append(optimizer)
        return self._inner.index(optimizer)

    def _title(self, group: int) -> str:
        """Return the keys of a group, as `partition` shows its patterns, or its number where a function chooses."""
        if not isinstance(self._map, OptimizerMap):
            return str(group)
        optimizer = self._inner[group]
        keys = [key for key, value in self._map.items() if value is optimizer]
        return ", ".join(keys + ["default"] * (optimizer is self._map.default_optimizer))

    def _unused(self, handles: dict[str, Handle]) -> list[Unused]:
        if not isinstance(self._map, OptimizerMap):
            return []
        keys = {self._map.key_of(path) for path in handles}
        return [Unused("optimizer_map", key, tuple(handles)) for key in self._map if key not in keys]

    def _must_unpack(self, buffer: Buffer) -> bool:
        return True  # its variables may belong to several groups

    def _groups(self) -> dict[str, Optimizer]:
        return {str(i): optimizer for i, optimizer in enumerate(self._inner)}

    @property
    @locked
    def _state(self) -> State:
        """The state, with a counter of skipped calls if an inner optimizer has a guard."""
        if SKIPPED not in self._kept.scalars and self._kernel().options.skip_nonfinite:
            scalars = self._kept.scalars | {SKIPPED: jnp.zeros((), jnp.int32)}
            object.__setattr__(self, "_kept", self._kept._replace(scalars=scalars))
        return super()._state

    def _program(self, programs: list[Any], guards: Any) -> Multi:
        return Multi(tuple(programs), guards)

    def _call(self, kernel: Kernel, own: State, calls: dict[int, Call]) -> Call:
        guards = kernel.options.skip_nonfinite
        scalars = {SKIPPED: own.scalars.get(SKIPPED, jnp.zeros((), jnp.int32))} if guards else {}
        params, states, grads, hyper = ([*x] for x in zip(*(call[1:5] for call in calls.values()), strict=True))
        return Call(kernel, params, State(own.count, {}, scalars, states), grads, hyper, calls)

    def _split(self, call: Call, own: State, params: Any, result: State) -> tuple[State, list[Any], list[State]]:
        return own._replace(count=result.count, scalars=own.scalars | result.scalars), params, result.slots

    def _joined(self, state: State) -> State:
        parts = dict(zip(self._groups(), state.slots, strict=True))
        hyper = {name: part.hyperparams for name, part in parts.items()}
        scalars = state.scalars | {name: part.scalars | {STEP: part.count} for name, part in parts.items()}
        slots = {path: slots_of(state.slots[i], inside) for path, (i, inside) in self._owners.items()}
        return with_slots(State(state.count, hyper, scalars, {}), slots)

    def _separated(self, state: State) -> State:
        parts = []
        for i, (name, optimizer) in enumerate(self._groups().items()):
            scalars = dict(state.scalars[name])
            part = optimizer._state._replace(count=scalars.pop(STEP), hyperparams=state.hyperparams[name])
            slots = {inside: slots_of(state, path) for path, (owner, inside) in self._owners.items() if owner == i}
            parts.append(with_slots(part._replace(scalars=scalars), slots))
        own = {name: state.scalars[name] for name in self._kept.scalars}
        return self._kept._replace(count=state.count, scalars=own, slots=parts)

    def get_config(self) -> dict[str, Any]:
        if not isinstance(self._map, OptimizerMap):
            raise TypeError(f"{self.name} chooses optimizers by a function, which a config cannot hold. Pickle it.")
        config = {"optimizer_map": self._map.get_config(), "loss_scale_factor": self._options.loss_scale_factor}
        return config | {"name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Any:
        groups = OptimizerMap.from_config(config["optimizer_map"], custom_objects)
        arguments: dict[str, Any] = config | {"optimizer_map": groups}
        return cls(**arguments)


WRAPPERS["MultiOptimizer"] = MultiOptimizer
