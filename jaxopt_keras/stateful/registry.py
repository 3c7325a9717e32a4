"""The registry of an optimizer: which variables it has, under which paths; and copies, which keep only the paths.

`copy` keeps the variables too. `deepcopy` and pickle keep the state, and match it with other variables later.
"""

import copy
import re
import warnings
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.parts import warn_of_overlooked
from jaxopt_keras.engine.plan import Plan, joined, plan
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.unused_patterns import Unused, warn_of
from jaxopt_keras.language.fields import RATE as RATE_NAME
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.custom.api import Custom
from jaxopt_keras.stateful.custom.hooks import INNER, Hooks
from jaxopt_keras.stateful.custom.stand_ins import StandIn
from jaxopt_keras.stateful.lock import locked
from jaxopt_keras.stateful.packed_variables import Buffer
from jaxopt_keras.stateful.settings import Exclusion, Settings
from jaxopt_keras.stateful.sources import Sources
from jaxopt_keras.stateful.validation import checked_gradient, refuse_traced
from jaxopt_keras.stateful.variable import check_iterable, deduplicated, unique_name
from jaxopt_keras.stateful.variable_kinds import Handle, handle

_NOT_COPIED = ("_handles", "_keys", "_views", "_stand_ins", "_kernel_cache", "_loss_seen", "_nested", "_traced")

COUNTS = (
    "With gradient accumulation the schedule of the learning rate gets the number of updates; Keras's gets the number "
    'of calls. Pass `schedule_counts="calls"` for Keras\'s rates, or `schedule_counts="updates"` for these without '
    "a warning."
)


class Registry(Settings, Custom):
    """Registration of variables, the attributes that an optimizer starts with, and copies without variables."""

    def _init_attributes(self, options: Options, stem: str, **own: Any) -> None:
        """Set all attributes to their values before the first variable.

        Args:
            options: the options.
            stem: a class name, from which a missing optimizer name is made.
            **own: attributes that replace or extend the defaults.
        """
        attributes = dict(
            name=options.name or unique_name(snake_case(stem)),
            built=False,
            _kept=None,  # the state; after a step its slots are packed, if that is faster
            _rule=None,
            _options=options,
            _loss_seen=None,  # the loss of the last gradients that `minimize` computed
            _sources=Sources({}, {}),  # the hyperparameters that are functions: the others are in state.hyperparams
            _paths=[],  # of the variables, in the order of registration
            _handles={},  # path -> Handle
            _keys={},  # id of a variable, or of its stand-in -> path
            _unbound={},  # path -> shape, of restored slots whose variables are not registered yet
            _excluded=Exclusion(),
            _without_sums=frozenset(),  # paths of variables with `trainable=False`, whose sums of gradients are zeros
            _custom_names=[],  # of slots and scalars that a user's class created, in that order
            _hypers={},  # name -> value, of run-time hyperparameters of a user's class
            _views={},  # place -> View
            _stand_ins={},  # path -> StandIn
            _in_hooks=False,  # whether hooks are running
            _traced=None,  # while hooks run: the hyperparameters and scalars at the start of the step
            _mapped_variables={},  # while hooks run: id of a variable -> the variable as hooks get it
            _nested={},  # path of the attribute -> inner optimizer
            _read_names=set(),  # of the settings that hooks have read
            _iterations_from=None,  # the variable that `_iterations` was set to; None: the state's
            _initial_decay=0.0,  # TF 2's `decay`
            jit_compile=True,
            gradient_transformers=(),
            gradient_aggregator=None,
            _kernel_cache=None,  # the kernel, or None; of a wrapper the kernels by those of its groups
        )
        attributes |= own
        self.__dict__.update(attributes, _reserved=frozenset(attributes))

    @locked
    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots of `variables`. Otherwise the first step does that. More variables may be added later."""
        with self._transaction():
            given = list(check_iterable("variables", variables))
            given = [self._mapped_from(v) for v in given]
            self._create_slots_of(self._register_all(self._unpacked_buffers([None] * len(given), given)[1]))
        object.__setattr__(self, "built", True)

    def describe(self, variables: Sequence[Any] | None = None) -> Plan:
        """Return the plan of a step: rule, rate, decay, formats and engine for each variable. It prints as a table.

        Args:
            variables: a list of variables; None: those that the optimizer was built with or has updated.

        Raises:
            ValueError: without variables. TypeError: if one is not a variable.

        >>> import jaxopt_keras as jk
        >>> print(jk.SGD(0.1, momentum=0.9).describe([jk.Variable([1.0, 2.0], name="w")]).groups[0].kind.slots)
        ('momentum float32',)
        """
        handles = [*self._handles.values()] if variables is None else [self._handle(v) for v in variables]
        if not handles:
            raise ValueError("`describe` needs variables. Pass a list of them, or call `build(variables)` first.")
        parts = {"": [h for h in handles if h.trainable], "trainable=False": [h for h in handles if not h.trainable]}
        plans = [self._plan(part).in_group(name) for name, part in parts.items() if part]
        return joined(plans).noted(self._unused({h.path: h for h in handles}))

    def _plan(self, handles: list[Handle]) -> Plan:
        """Return the plan of a step over variables."""
        options = self._effective(self._options, {h.path: h for h in handles})
        program = Kernel(self._core(self._rule), options).program
        shapes = {h.path: jax.ShapeDtypeStruct(h.shape, h.read().dtype) for h in handles}
        return plan(program, shapes, self._state_of(shapes) if self._has_hooks() else None)

    def _state_of(self, shapes: dict[str, Any]) -> State:
        """Return the part of the state that belongs to variables, for a class whose own code makes their slots."""
        if unknown := [path for path in shapes if path not in self._handles]:
            raise ValueError(
                f"The slots of {type(self).__name__} are made by its own code, for variables that it knows. Received: "
                f"{unknown}. Call `build(variables)` before `describe`."
            )
        slots = {name: {path: tree[path] for path in shapes} for name, tree in self._state.slots.items()}
        return self._state._replace(slots=slots)

    def _handle(self, variable: Any) -> Handle:
        """Return the handle of a variable, registered or not."""
        key = self._keys.get(id(variable))
        return handle(variable) if key is None else self._handles[key]

    def _mapped_from(self, variable: Any) -> Any:
        """Return the variable of a stand-in for another optimizer's hooks; others unchanged."""
        if isinstance(variable, StandIn) and id(variable) not in self._keys:
            original = variable.optimizer._handles[variable.path].variable
            if id(original) in self._keys:
                self._keys[id(variable)] = self._keys[id(original)]
            return original
        return variable

    def _key(self, variable: Any) -> str:
        """Return the path under which a variable is registered.

        Raises:
            KeyError: if it is not registered.
        """
        try:
            return self._keys[id(variable)]
        except KeyError:
            path, buffer, known = handle(variable).path, getattr(variable, "buffer", None), list(self._handles)
            if buffer is not None and id(buffer) in self._keys:
                raise KeyError(
                    f"`{path}` is registered in {self.name} as part of `{buffer.path}`. Pass that buffer, which "
                    "`pack_variables` returned."
                ) from None
            raise KeyError(f"`{path}` is not registered in {self.name}. Registered: {known}") from None

    def _ensure(self, variables: list[Any]) -> dict[str, Any] | None:
        """Register new variables, if there are any. Return a snapshot to `_restore` if the step fails, or None."""
        if all(id(v) in self._keys for v in variables):
            if self._kernel_cache is None:
                self._find_attributes()
            return None
        variables = [self._mapped_from(v) for v in variables]
        with self._transaction() as before:
            self._run_build_hooks(self._register_all(variables), type(self).build is not Registry.build)
            self._find_attributes()
            object.__setattr__(self, "built", True)
        return before

    def _register_all(self, variables: list[Any]) -> list[str]:
        """Register the variables of a step or of `build`. Warn of patterns that match none of the first ones."""
        is_first = not self._paths
        fresh = self._register(variables)
        if is_first and variables:
            self._warn_of_schedule()
            warn_of(self._unused(self._handles), stacklevel=4)
            if isinstance(self._rule, Rule):
                shapes = {h.path: jax.ShapeDtypeStruct(h.shape, h.read().dtype) for h in self._handles.values()}
                warn_of_overlooked(Kernel(self._rule, self._options).program, shapes, stacklevel=4)
        return fresh

    def _warn_of_schedule(self) -> None:
        """Warn of a schedule of a class under accumulation, unless `schedule_counts` says what it counts."""
        options, counted = self._options, hasattr(self._sources.get(RATE_NAME), "get_config")
        if options.gradient_accumulation_steps and options.schedule_counts is None and counted:
            warnings.warn(COUNTS, stacklevel=5)

    def _unused(self, handles: dict[str, Handle]) -> list[Unused]:
        """Return the patterns that match none of the variables, which are given by path."""
        names: dict[str, str] = {}  # by path
        for key, h in handles.items():
            in_buffer = {v.path: v.name for v in h.variable.variables} if isinstance(h.variable, Buffer) else None
            names |= in_buffer or {key: h.name}
        found = Kernel(self._rule, self._options).program.unused([*names])
        return found + self._excluded.unused(names)

    def _register(self, variables: list[Any]) -> list[str]:
        """Give each new variable a path and slots. Return the paths of those that had no restored slots.

        If it raises, the caller's transaction undoes what it has done.
        """
        new = self._new_handles(variables)
        if not new:
            return []
        self._check_outside_hooks()
        for h in new:
            buffer = getattr(h.variable, "buffer", None)
            if buffer is not None and id(buffer) in self._keys:
                raise ValueError(
                    f"{self.name} updates the buffer `{buffer.path}` that contains `{h.path}`. Pass the gradient of "
                    "the buffer: `value_and_grad(loss, packed)`, where `pack_variables` returned `packed`."
                )
            if h.trainable and not jnp.issubdtype(h.dtype, jnp.inexact):
                raise TypeError(
                    "A trainable variable must be of floats or complex numbers. Received: "
                    f"`{h.path}` of dtype {h.dtype}. Set `trainable=False`."
                )
        foreign, known = isinstance(self._rule, Foreign), [*self._paths]
        fresh = self._bind(new)
        if foreign and known and (fresh or self._unbound):
            raise ValueError(
                f"{self.name} runs an optax transformation, which needs all its variables at once. Registered: "
                f"{known}. Received: {[h.path for h in new]}"
            )
        added = {self._keys[id(h.variable)]: h for h in new}
        state, initial = self._with_initial_slots(self._kernel(), added)
        refuse_traced(initial.count)
        scalars = initial.scalars if foreign and not known else initial.scalars | state.scalars
        self._set_state(state._replace(scalars=scalars))
        return fresh

    def _new_handles(self, variables: list[Any]) -> list[Handle]:
        """Return handles of those variables that are not registered."""
        return list({id(v): handle(v) for v in variables if id(v) not in self._keys}.values())

    def _bind(self, new: list[Handle]) -> list[str]:
        """Give each new variable a path. Return the paths of those without restored slots."""
        bound, fresh = match_unbound(new, self._unbound), []
        for h in new:
            key = bound.get(id(h.variable)) or deduplicated(h.path, self._paths)
            self._handles[key], self._keys[id(h.variable)] = h, key
            if self._unbound.pop(key, None) is None:
                fresh.append(key)
                self._paths.append(key)
        object.__setattr__(self, "_kernel_cache", None)
        return fresh

    def _unpacked_buffers(self, grads: list[Any], variables: list[Any]) -> tuple[list[Any], list[Any]]:
        """Replace buffers that must be unpacked by their variables, and split their gradients accordingly."""
        pairs: list[tuple[Any, Any]] = []
        for g, v in zip(grads, variables, strict=True):
            if isinstance(v, Buffer) and id(v) not in self._keys and self._must_unpack(v):
                g = checked_gradient(g, self._handle(v))
                arrays = {} if g is None else v.split(jnp.asarray(g))
                pairs += [(arrays.get(id(w)) if w.trainable else None, w) for w in v.variables]
            else:
                pairs.append((g, v))
        return [g for g, _ in pairs], [v for _, v in pairs]

    def _must_unpack(self, buffer: Buffer) -> bool:
        """Whether the variables of `buffer` are updated separately: by the settings, or one is registered or frozen."""
        registered = any(id(v) in self._keys or v.path in self._unbound for v in buffer.variables)
        return (
            registered
            or not all(v.trainable for v in buffer.variables)
            or not self._kernel().core.elementwise
            or self._per_variable_option(self._options, buffer) is not None
        )

    # --- copies -----------------------------------------------------------------------------------------------------

    @locked
    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the variables: a copy is matched with its own variables (`match_unbound`)."""
        state = self._state  # with unpacked slots
        if isinstance(state.slots, list):  # of the states of inner optimizers, which are among the attributes
            state = state._replace(slots={})
        state = state._replace(scalars={n: x for n, x in state.scalars.items() if n != INNER})  # likewise
        kept = {k: v for k, v in self.__dict__.items() if k not in _NOT_COPIED}
        shapes = self._unbound | {k: h.shape for k, h in self._handles.items()}
        return kept | {
            "_kept": jax.tree.map(_host_copy, state),
            "_unbound": {k: shapes[k] for k in self._paths},
            "_excluded": self._portable_exclusion(),
        }

    def __setstate__(self, kept: dict[str, Any]) -> None:
        attributes = self.__dict__  # may contain views and stand-ins already, which pickle restored before
        views, stand_ins, keys = (attributes.get(name, {}) for name in ("_views", "_stand_ins", "_keys"))
        attributes.update(kept, _handles={}, _keys=keys, _kernel_cache=None, _views=views, _stand_ins=stand_ins)
        attributes.update(_nested={}, _traced=None)
        attributes["_kept"] = jax.tree.map(jnp.asarray, kept["_kept"])

    @locked
    def __copy__(self) -> Self:
        """Return a copy for the same variables, with a copy of the state."""
        shared = [self._options, *(h.variable for h in self._handles.values())]
        if not isinstance(self._rule, Hooks):
            shared.append(self._rule)
        inner = {id(o): copy.copy(o) for o in getattr(self, "_inner", ())}
        # Deep, since attributes of a custom optimizer may be views. The copy needs views of its own state.
        new = copy.deepcopy(self, {id(x): x for x in shared} | inner)
        keys = {id(h.variable): key for key, h in self._handles.items()}
        new.__dict__.update(_handles=dict(self._handles), _unbound=dict(self._unbound), _excluded=self._excluded)
        new.__dict__["_keys"].update(keys)
        return new


def _host_copy(x: Any) -> Any:
    """Return a copy of an array as a NumPy array; of extended dtypes, which NumPy lacks, as a JAX array."""
    return jnp.copy(x) if jnp.issubdtype(x.dtype, jax.dtypes.extended) else np.array(x)


def match_unbound(handles: list[Handle], unbound: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Match the slots of a copied or restored optimizer with variables.

    Variables are matched by path if all paths are found. Otherwise, if number and shapes agree, they are matched by
    order, since a rebuilt model may number its names differently. Otherwise those whose paths are found are matched.
    Shapes must agree in all cases.

    Args:
        handles: the variables.
        unbound: shapes by path, of slots without a variable.

    Returns:
        The slots' path by the variable's id, for the variables that are matched.
    """
    by_path: dict[int, str] = {}
    for h in handles:
        path = deduplicated(h.path, by_path.values())
        if unbound.get(path) == tuple(h.shape):
            by_path[id(h.variable)] = path
    in_order = [tuple(h.shape) for h in handles] == list(unbound.values())
    if len(by_path) < len(unbound) and in_order:
        return {id(h.variable): path for h, path in zip(handles, unbound, strict=True)}
    return by_path


def snake_case(name: str) -> str:
    """Convert a class name to Keras's name of an instance: RMSprop -> rm_sprop, AdamW -> adam_w."""
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)).lower()
