"""The options of every optimizer: weight decay, clipping, averaging, accumulation, constraints, storage."""

import difflib
import inspect
import math
import re
from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, Self

import jax
import numpy as np
from jax import Array

from jaxopt_keras.language.paths import path_of
from jaxopt_keras.language.rule import COMPLEMENT, Amount, Count, Hyperparameters, Within, fields_of

HOST = "pinned_host"
FORMATS = ("float32", "bfloat16", "float16", "float8", "int8", "int4")


class Options(Hyperparameters):
    """The arguments common to all optimizers, in Keras's order. Keras lacks those after `name`.

    Args:
        weight_decay: decoupled decay `p <- p (1 - lr weight_decay)`, once before each update; None: off.
        clipnorm: the greatest norm of each gradient; a longer one is scaled down. Only one of the three clips can be
            set; 0 or None: off.
        clipvalue: the greatest absolute value of a gradient element; others are clipped to it.
        global_clipnorm: the greatest joint norm of all gradients; they are scaled down together.
        use_ema: keep an exponential moving average of the parameters (slot `average`).
        ema_momentum: the decay of this average, in [0, 1].
        ema_overwrite_frequency: the number of updates after which the parameters become their average; None: never.
        loss_scale_factor: the factor of the loss (`Optimizer.scale_loss`); gradients are divided by it.
        gradient_accumulation_steps: an int >= 2: the number of calls for one update, with the mean of their gradients.
            Clip, decay, schedule, average and constraint happen once per update. None or 0: off.
        exclude_from_weight_decay: regular expressions, searched for in a parameter's path; a function
            `(path, parameter) -> bool`; a tree of bools like the parameters or a prefix of one (True: excluded); or a
            function of the parameters that returns such a tree.
        constraints: `{regex: function}`: at the end of an update, each parameter with a matching path becomes
            `function(parameter)`.
        sparse: "dense": a sparse gradient has the effect of the equal dense one. "lazy": it updates only its rows and
            their slots.
        axis_name: a mapped axis (inside `shard_map` or `pmap`) over which gradients are summed first.
        name: the name of the optimizer.
        state_dtype: the storage format of slots between steps: "float32", "bfloat16", "float16", "float8", "int8",
            "int4", or a dict of these by slot name; None: the dtype of the arithmetic. All but the first two are
            quantized, with a scale for each block (`storage.blockwise`). Slots that a rule marks as exact, and small
            slots, stay float32.
        master_weights: an addition to bfloat16 parameters that keeps small updates: "float32", a copy, or "bf16+16" or
            "bf16+8", a correction of 16 or 8 bits (`storage.masters`). float16 parameters can only have "float32".
            None: no addition; ScheduleFreeAdamW's default is "float32".
        rounding: how parameters of 16 bits are rounded: to "nearest", or "stochastic", which is exact on average.
        seed: the seed of stochastic rounding; None: 0.
        engine: what runs a step. "auto": the fastest way that is right for the platform and the sharding: on a CPU with
            a C compiler, native loops made from the rule's own arithmetic; elsewhere XLA. "xla": always XLA. "native":
            the loops, or an error that says why there are none. `Kernel.describe` shows the choice.
        skip_nonfinite: a call with NaN or infinity in its gradients changes nothing but the counter `skipped`.
        skip_spikes: a number above 1: so does a call whose joint gradient norm is more than this many times its
            running mean. None: off.
        offload: "pinned_host" keeps slots in host memory between steps; `{regex: "pinned_host"}` keeps there the slots
            with a "path/slot" in which the expression is found. None: no slots.
        inject_hyperparams: True, a name or several: keep these hyperparameters in the state (`state.hyperparams`)
            instead of in the kernel, so that `Kernel.replaced` changes them and `vmap` maps over them.
        flat_state: True: the slots of small arrays are packed between steps, in one buffer for each dtype, so that a
            step over many of them dispatches a third of the arrays. For parameters on one device. In the pure face
            `state.slots.unpack()` then returns the tree. None: the stateful face packs them where that is faster, and
            unpacks them for a read. False: never.
    """

    weight_decay: Amount | None = None
    clipnorm: Amount | None = None
    clipvalue: Amount | None = None
    global_clipnorm: Amount | None = None
    use_ema: bool = False
    ema_momentum: Annotated[float, Within(0, 1), COMPLEMENT] = 0.99
    ema_overwrite_frequency: Count | None = None
    loss_scale_factor: Annotated[float, Within(above=0)] | None = None
    gradient_accumulation_steps: Count | None = None
    name: str | None = None
    exclude_from_weight_decay: Any = ()
    constraints: Any = ()
    sparse: Literal["dense", "lazy"] = "dense"
    axis_name: Any = None
    state_dtype: Any = None
    master_weights: Literal["float32", "bf16+16", "bf16+8", None] = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: Count | None = None
    engine: Literal["auto", "xla", "native"] = "auto"
    skip_nonfinite: bool = False
    skip_spikes: Annotated[float, Within(above=1, below=math.inf)] | None = None
    offload: Any = None
    flat_state: bool | None = None
    inject_hyperparams: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        clips = {n: getattr(self, n) for n in ("clipnorm", "clipvalue", "global_clipnorm")}
        if sum(c is not None for c in clips.values()) > 1:
            received = ", ".join(f"{n}={c}" for n, c in clips.items())
            raise ValueError(
                f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set. Received: {received}"
            )
        if self.gradient_accumulation_steps == 1:
            raise ValueError(
                "`gradient_accumulation_steps` must be an integer >= 2, or None. "
                "Received: gradient_accumulation_steps=1"
            )
        if self.use_ema and self.ema_overwrite_frequency == 0:
            raise ValueError(
                "`ema_overwrite_frequency` must be an integer >= 1, or None. Received: ema_overwrite_frequency=0"
            )
        for name in ("gradient_accumulation_steps", "axis_name"):
            if self.sparse == "lazy" and getattr(self, name):
                raise ValueError(
                    f'`sparse="lazy"` cannot be combined with `{name}`: the sum of several sparse gradients is dense. '
                    f'Received: {name}={getattr(self, name)!r}. Use `sparse="dense"`.'
                )
        if self.flat_state and self.offload:
            raise ValueError(
                "`flat_state` and `offload` cannot be combined: packed slots cannot be moved to host memory. "
                f"Received: flat_state=True, offload={self.offload!r}. Leave one of them out."
            )
        object.__setattr__(self, "state_dtype", _read_formats(self.state_dtype))
        object.__setattr__(self, "offload", _read_offload(self.offload))
        object.__setattr__(self, "exclude_from_weight_decay", _read_exclusion(self.exclude_from_weight_decay))
        object.__setattr__(self, "constraints", _read_constraints(self.constraints))
        object.__setattr__(self, "inject_hyperparams", _read_injected(self.inject_hyperparams))
        axes = (self.axis_name,) if isinstance(self.axis_name, str | None) else self.axis_name
        if not (isinstance(axes, (tuple, list)) and all(isinstance(a, str | None) and a != "" for a in axes)):
            raise TypeError(
                "`axis_name` must be the name of a mapped axis, or a tuple of names. Received: "
                f"axis_name={self.axis_name!r}"
            )
        object.__setattr__(self, "axis_name", tuple(axes) if isinstance(self.axis_name, list) else self.axis_name)

    def skeleton(self) -> Self:
        unused = isinstance(self.ema_momentum, Array) and not self.use_ema
        off = {"inject_hyperparams": None} | ({"ema_momentum": Options.ema_momentum} if unused else {})
        return super().skeleton().bind(off)

    def injects(self, name: str) -> bool:
        """Whether the hyperparameter `name` is kept in the state."""
        return self.inject_hyperparams is True or name in (self.inject_hyperparams or ())

    def _is_traced(self, name: str, field: Any) -> bool:
        if name == "ema_momentum" and not self.use_ema:
            return False
        value = getattr(self, name)
        off = "clip" in name and isinstance(value, float) and value == 0
        return super()._is_traced(name, field) and not off

    def decays(self, path: str, p: Any) -> bool:
        """Whether the parameter at `path` decays."""
        if isinstance(self.exclude_from_weight_decay, MaskOfParams):
            raise TypeError(
                "`exclude_from_weight_decay` must be patterns, a tree, or a function of (path, parameter) in the "
                f"stateful face. Received: {self.exclude_from_weight_decay.function!r}, a function of all parameters"
            )
        if callable(self.exclude_from_weight_decay):
            return not self.exclude_from_weight_decay(path, p)
        return not any(re.search(pattern, path) for pattern in self.exclude_from_weight_decay)

    def for_params(self, params: Any) -> Self:
        """Return the options with a decay mask made by calling the function of the parameters, if there is one."""
        if not isinstance(self.exclude_from_weight_decay, MaskOfParams):
            return self
        tree = params.unpack() if hasattr(params, "unpack") else params  # only packed parameters have `unpack`
        return self.bind({"exclude_from_weight_decay": Mask.of(self.exclude_from_weight_decay.function(tree))})

    def constraint(self, path: str) -> Callable[[Any], Any] | None:
        """Return the first constraint that matches `path`, or None."""
        return next((f for pattern, f in self.constraints if re.search(pattern, path)), None)


_NAMES = [*fields_of(Options)]
EXTRAS = tuple(_NAMES[_NAMES.index("name") + 1 :])  # the options that Keras lacks


def refuse_unknown(what: str, arguments: dict[str, Any], known: Any) -> None:
    """Raise a TypeError for the first of `arguments` that is not `known`, with the nearest known name."""
    for name, value in arguments.items():
        if name not in known:
            close = ["learning_rate"] if name == "lr" else difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"It has {list(known)}."
            raise TypeError(f"{what} has no argument `{name}`. Received: {name}={value!r}. {hint}")


class Mask(NamedTuple):
    """A decay mask: the paths of a tree of bools, and whether the parameters at or below each path are excluded."""

    entries: tuple[tuple[str, bool], ...]

    @classmethod
    def of(cls, tree: Any) -> "Mask":
        keyed = jax.tree_util.tree_leaves_with_path(tree)
        if not all(isinstance(x, (bool, np.bool_)) for _, x in keyed):
            raise TypeError(f"`exclude_from_weight_decay` must be a tree of True and False. Received: {tree!r}")
        return cls(tuple((path_of(key), bool(x)) for key, x in keyed))

    def __call__(self, path: str, p: Any) -> bool:
        found = [excluded for at, excluded in self.entries if at in ("", path) or path.startswith(f"{at}/")]
        if not found:
            raise ValueError(
                "`exclude_from_weight_decay` must be a tree like the parameters, or a prefix of it. Received: one "
                f"without `{path}`. It has {[at for at, _ in self.entries]}"
            )
        return found[0]


class MaskOfParams(NamedTuple):
    """A function of the parameters that returns a mask."""

    function: Callable[[Any], Any]


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function has exactly one required argument."""
    try:
        known = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    positional = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in known)


def _read_exclusion(value: Any) -> Any:
    """Validate `exclude_from_weight_decay`: return a mask, a function, or a tuple of patterns."""
    if isinstance(value, (Mask, MaskOfParams)):
        return value
    if callable(value):
        return MaskOfParams(value) if _takes_one(value) else value
    leaves = jax.tree.leaves(value)
    if leaves and all(isinstance(x, (bool, np.bool_)) for x in leaves):
        return Mask.of(value)
    if not isinstance(value, (str, list, tuple, set, frozenset, NoneType)):
        raise TypeError(
            "`exclude_from_weight_decay` must be regular expressions, a function, or a tree of bools. Received: "
            f"exclude_from_weight_decay={value!r}"
        )
    names = (value,) if isinstance(value, str) else tuple(value or ())
    for name in names:
        check_pattern("exclude_from_weight_decay", name)
    return names


def _read_injected(value: Any) -> Any:
    """Validate `inject_hyperparams`: return True, a tuple of names, or None."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, (list, tuple, set, frozenset)) and all(isinstance(name, str) for name in names):
        return tuple(sorted(names)) or None
    if value is not None and not isinstance(value, bool):
        raise TypeError(
            f"`inject_hyperparams` must be True, or names of hyperparameters. Received: inject_hyperparams={value!r}"
        )
    return value or None


def _read_constraints(value: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Validate `constraints`: return pairs of a pattern and a function."""
    pairs = tuple(value.items()) if isinstance(value, dict) else () if value is None else value
    if not (isinstance(pairs, (tuple, list)) and all(isinstance(x, (tuple, list)) and len(x) == 2 for x in pairs)):
        raise TypeError(f"`constraints` must map patterns to functions. Received: constraints={value!r}")
    for pattern, function in pairs:
        check_pattern("constraints", pattern)
        if not callable(function):
            raise TypeError(f"`constraints` must map patterns to functions. Received: {pattern!r}: {function!r}")
    return tuple((pattern, function) for pattern, function in pairs)


def _read_formats(value: Any) -> Any:
    """Validate `state_dtype`: return a format, pairs of a slot and its format, or None."""
    pairs = tuple(sorted(value.items())) if isinstance(value, dict) else value
    for name in (name for _, name in pairs) if isinstance(pairs, (tuple, list)) else [pairs]:
        if name is not None and name not in FORMATS:
            raise ValueError(
                f"`state_dtype` must be one of {list(FORMATS)}, or a dict of these by slot name. "
                f"Received: state_dtype={value!r}"
            )
    return tuple((slot, name) for slot, name in pairs) if isinstance(pairs, list) else pairs


def _read_offload(value: Any) -> Any:
    """Validate `offload`: return the patterns of slots that are kept in host memory, or None."""
    if value is None or value == HOST:
        return value and ("",)
    pairs = (
        value.items() if isinstance(value, dict) else [(x, HOST) for x in value] if _is_list(value) else [("", value)]
    )
    for pattern, kind in pairs:
        check_pattern("offload", pattern)
        if kind != HOST:
            raise ValueError(f"`offload` must be {HOST!r}, or map patterns to it. Received: offload={value!r}")
    return tuple(pattern for pattern, _ in pairs) or None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def check_pattern(name: str, pattern: Any) -> None:
    """Raise a TypeError or a ValueError if `pattern` is not a regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({type(pattern).__name__})")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({error})") from None
