"""Names of torch.optim, optax and older versions of Keras, and what to write in their place."""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np

# The same arguments under other names. A hint is given if the optimizer has all of them.
RENAMED = {
    "lr": ("learning_rate",),
    "betas": ("beta_1", "beta_2"),
    "b1": ("beta_1",),
    "b2": ("beta_2",),
    "eps": ("epsilon",),
    "alpha": ("rho",),
    "max_norm": ("global_clipnorm",),
    "every_k_schedule": ("gradient_accumulation_steps",),
}
COMPILED = "Leave it out: every step is one compiled program."
ADVICE = {  # arguments without a counterpart, or with one of another meaning
    "params": "Pass parameters to `kernel.init(params)`, or to `optimizer.apply_gradients(zip(grads, variables))`.",
    **dict.fromkeys(("fused", "foreach", "capturable", "jit_compile", "use_locking"), COMPILED),
    "differentiable": "Leave it out: `jax.grad` differentiates every step.",
    "maximize": "Leave it out, and pass the gradients of the negative objective.",
    "dampening": "Leave it out: the momentum has no dampening.",
    "mask": "Use `exclude_from_weight_decay`, which is True where optax's mask is False, or a list of patterns.",
    "mu_dtype": 'Use `state_dtype`, such as `state_dtype="bfloat16"`, or a dict by slot: `{"momentum": "bfloat16"}`.',
    "eps_root": "Leave it out: only `Adam`, `AdamW`, `Nadam`, `Lamb` and `ScheduleFreeAdamW` have it.",
    "amsgrad": "Only `Adam` and `AdamW` have it.",
    **dict.fromkeys(
        ("decay", "lr_decay"),
        "Use a schedule: `learning_rate=jaxopt_keras.schedules.InverseTimeDecay(rate, 1, decay)`. "
        "The decay of an average has the name `rho`, or `beta_1` and `beta_2`.",
    ),
}
PARAMS_FIRST = f". {ADVICE['params']}"  # for `Adam(model.parameters())`, as in torch

# Methods and attributes of the optimizers of other libraries, which the stateful face does not have.
GRADIENTS = "compute them by `jaxopt_keras.value_and_grad(loss, variables)`"
KERNEL = "An optax transformation is a kernel, made by a function such as `jaxopt_keras.adam()`."
METHODS = {
    "step": f"Gradients are arguments: {GRADIENTS}, and call `apply_gradients(zip(grads, variables))`.",
    "zero_grad": f"Nothing to reset: gradients are not kept between steps; {GRADIENTS}.",
    "state_dict": "Use `jaxopt_keras.checkpoint.to_dict(optimizer)`, or `checkpoint.save(path, optimizer)`.",
    "load_state_dict": "Use `jaxopt_keras.checkpoint.load(path, optimizer)`; for a state of torch, "
    "`checkpoint.from_torch`.",
    "param_groups": "Set hyperparameters as attributes: `optimizer.learning_rate = 1e-4`. For groups of variables use "
    "`jaxopt_keras.MultiOptimizer`.",
    "add_param_group": "For groups of variables use `jaxopt_keras.MultiOptimizer`.",
    "init": KERNEL,
    "update": KERNEL,
}

STATE_DICT = "A state is a pytree: `jaxopt_keras.checkpoint.save(path, state)`, or `checkpoint.to_dict(state)`."
LOAD = "`state = jaxopt_keras.checkpoint.load(path, kernel, params)`; for a state of torch, `checkpoint.from_torch`."
FACE = "The stateful face has it, `jaxopt_keras.Adam(...)`. Here: `params, state = kernel.step(params, state, grads)`."
KERNEL_METHODS = {
    "state_dict": STATE_DICT,
    "load_state_dict": LOAD,
    "param_groups": "Other numbers: `kernel.replace(learning_rate=1e-4)`. Groups: `jaxopt_keras.partition`.",
    "add_param_group": "For groups of parameters use `jaxopt_keras.partition`.",
    "zero_grad": "Nothing to reset: gradients are arguments of `step`.",
    "learning_rate": "The rate of a step: `kernel.numbers(state)`; another one: `kernel.replace(learning_rate=1e-4)`.",
    **dict.fromkeys(("apply_gradients", "apply", "minimize", "get_weights", "set_weights", "build"), FACE),
}
STATE_FIELDS = {
    "mu": 'The first moment is `state.slots["momentum"]`.',
    "nu": 'The second moment is `state.slots["velocity"]`.',
    "step": "The number of updates is `state.count`.",
    "inner_state": "A state has no inner states: see `state.slots` and `state.scalars`.",
    "learning_rate": "`kernel.numbers(state)` has the numbers of the step that led to the state.",
    "state_dict": STATE_DICT,
    "load_state_dict": LOAD,
    "param_groups": KERNEL_METHODS["param_groups"],
}


def no_attribute(owner: object, name: str, hints: dict[str, str]) -> AttributeError:
    """Return the error for an attribute that `owner` lacks. It says what to write in its place, if `hints` know it."""
    hint = f". {hints[name]}" if name in hints else ""
    return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}{hint}")


def hint_for(name: str, known: Iterable[str]) -> str:
    """Return what to write in place of the argument `name`, for an optimizer with the arguments `known`."""
    known = list(known)
    renamed = RENAMED.get(name, ())
    if renamed and all(each in known for each in renamed):
        close = list(renamed)
    elif name in ADVICE:
        return ADVICE[name]
    else:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"Did you mean {' and '.join(f'`{each}`' for each in close)}?" if close else f"It has {known}."


def refuse_unknown(what: str, arguments: dict[str, Any], known: Iterable[str]) -> None:
    """Raise a TypeError for the first of `arguments` that is not `known`. It says what to write in its place."""
    for name, value in arguments.items():
        if name not in known:
            raise TypeError(f"{what} has no argument `{name}`. Received: {name}={value!r}. {hint_for(name, known)}")


def holds_arrays(value: Any) -> bool:
    """Whether `value` may be parameters: an array, or a list, a generator or a tree of them."""
    return not isinstance(value, str) and (
        bool(np.ndim(value)) if hasattr(value, "ndim") else isinstance(value, Iterable)
    )
