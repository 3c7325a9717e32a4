"""Which of Keras's methods a subclass may override.

Three generations of classes have methods that their own base class calls: Keras 3, tf.keras 2.11 and TF 2's
`OptimizerV2`. `HOOKS` are called here in the same places. An override of one of `NEVER_CALLED` would have no effect, so
that such a class is refused when it is made. All others are called by the user's code alone.
"""

import functools
import sys
from typing import Any

PACKAGE = "jaxopt_keras"
UPDATES = (
    "update_step",
    "_backend_update_step",
    "_resource_apply_dense",
    "_resource_apply_sparse",
    "_resource_apply_sparse_duplicate_indices",
)
CLIPS = (
    "_clip_gradients",
    "_clip_by_norm",
    "_transform_gradients",
    "_transform_unaggregated_gradients",
    "_aggregate_gradients",
)
RATES = ("_get_current_learning_rate", "_decayed_lr", "learning_rate")
DECAYS = ("_apply_weight_decay", "_use_weight_decay", *RATES)
PREPARES = ("_prepare", "_prepare_local", "_create_slots", "_create_hypers")
HOOKS = (*UPDATES, *CLIPS, *DECAYS, *PREPARES)
"""The methods that run inside the compiled step."""

CALLS = ("apply", "apply_gradients")
"""The methods around it. If one is overridden, `stateless_apply` and `as_keras` call it, as Keras does."""

CREATES = (
    "add_variable", "add_variable_from_reference", "add_optimizer_variables", "add_weight", "add_slot", "get_slot",
    "assign", "assign_add", "assign_sub", "_get_variable_index", "_build_learning_rate", "_get_hyper", "_set_hyper",
    "_serialize_hyperparameter", "_fallback_apply_state", "_resource_scatter_add", "_resource_scatter_update",
)  # fmt: skip
"""The methods that Keras's named classes call in their own `build` and `update_step`, which are a rule here."""

_AROUND = "override `apply`, which runs around the whole step, or `_backend_update_step`, which runs inside it"
_OPTION = "the option `{}` does this; what it does cannot be changed"
_ACCUMULATION = _OPTION.format("gradient_accumulation_steps")
_AVERAGE = _OPTION.format("use_ema")
_CONFIG = "pass the number or the schedule to `__init__`"
_TENSORS = "there are no resources and handles of TensorFlow here"

NEVER_CALLED = {
    # Keras 3
    "_backend_apply_gradients": _AROUND,
    "_backend_increment_gradient_accumulators": _ACCUMULATION,
    "_backend_reset_gradient_accumulators": _ACCUMULATION,
    "_update_model_variables_moving_average": _AVERAGE,
    "_overwrite_model_variables_with_average_value": _AVERAGE,
    "_overwrite_variables_directly_with_gradients": _AROUND,
    "_overwrite_variable_with_gradient": _AROUND,
    "_filter_empty_gradients": _AROUND,
    "_check_variables_are_known": _AROUND,
    "_check_super_called": "it is checked when an attribute is set",
    "_track_variable": "override `add_variable`; variables among the attributes are found without it",
    "_untrack_variable": "variables among the attributes are found without it",
    "_obj_type": "Keras knows the type of its adapter",
    "_var_key": "variables are known by their paths",
    "iterations": (
        "the count is part of the state. Assign `optimizer.iterations`, or let an inner optimizer count with another: "
        "`inner._iterations = self.iterations`"
    ),
    # tf.keras 2.11
    "_build_index_dict": "variables are known by their paths",
    "_compute_current_learning_rate": "override `_get_current_learning_rate`",
    "_create_iteration_variable": "`iterations` is part of the state",
    "_deduplicate_sparse_grad": "rows of a sparse gradient are summed before hooks get them",
    "_distributed_apply_gradients_fn": _AROUND,
    "_internal_apply_gradients": _AROUND,
    "_process_kwargs": "read the arguments in `__init__`",
    "_update_step": "override `update_step`",
    "_update_step_xla": "override `update_step`",
    "aggregate_gradients": "override `apply`",
    "compute_gradients": "override `minimize`",
    # TF 2
    "_assert_valid_dtypes": _TENSORS,
    "_call_if_callable": _CONFIG,
    "_clipvalue_fn": "override `_transform_gradients`",
    "_clipnorm_fn": "override `_transform_gradients`",
    "_global_clipnorm_fn": "override `_transform_gradients`",
    "_create_all_weights": "override `_create_slots`",
    "_create_or_restore_slot_variable": "override `_create_slots`",
    "_create_slots_for_sharded_variables": "override `_create_slots`",
    "_dense_apply_args": "`apply_state` is passed to hooks that have this argument",
    "_trackable_children": _TENSORS,
    "_sparse_apply_args": "`apply_state` is passed to hooks that have this argument",
    "_distributed_apply": _AROUND,
    "_distribution_strategy_scope": "arrays are sharded by JAX",
    "_get_gradients": "override `_compute_gradients`",
    "_init_set_name": "pass `name` to `__init__`",
    "_restore_slot_variable": "override `set_weights`",
    "_valid_dtypes": _TENSORS,
    "get_updates": "override `apply_gradients`",
}

NOT_BY_A_RULE = dict.fromkeys(
    CREATES,
    "a named class runs a rule, which has slots of its own. Derive the class from `jaxopt_keras.Optimizer` and write "
    "its `build` and `update_step`",
)
"""The methods of a named class that would never be called."""


def without_effect(cls: type, runs_rule: bool) -> dict[str, str]:
    """Return the methods of a class that would never be called, and what to do instead.

    A class with a step of its own may call those that its rule does not call.
    """
    return NEVER_CALLED | NOT_BY_A_RULE if runs_rule and not overridden(cls, UPDATES) else NEVER_CALLED


def is_library(cls: type) -> bool:
    """Whether a class is one of this library: its module has it. (A class of a doctest has the module's name only.)"""
    module = sys.modules.get(cls.__module__) if in_library(cls) else None
    return module is not None and (module.__name__ == PACKAGE or vars(module).get(cls.__qualname__) is cls)


def in_library(cls: type) -> bool:
    """Whether a class, which may be in the making, is in a module of this library."""
    return cls.__module__.partition(".")[0] == PACKAGE


@functools.lru_cache(4096)
def overrides(cls: type, name: str) -> bool:
    """Whether `cls` has a method of this name that is not the library's."""
    return not is_library(next((c for c in cls.__mro__ if name in vars(c)), Library))


def overridden(cls: type, names: tuple[str, ...]) -> str | None:
    """Return the first of `names` that `cls` overrides, or None."""
    return next((name for name in names if overrides(cls, name)), None)


def refuse_overrides(cls: type, names: dict[str, str]) -> None:
    """Raise a TypeError if the body of a class defines a method that would never be called."""
    for name in vars(cls).keys() & names.keys():
        raise TypeError(f"`{name}` of {cls.__name__} would never be called. Instead: {names[name]}.")


class Library:
    """A class of this library without methods."""


def accepts(hook: Any, name: str) -> bool:
    """Whether a hook has an argument of this name."""
    code = getattr(hook, "__code__", None)
    return code is not None and name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
