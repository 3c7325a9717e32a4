"""What every optimizer can do around its rule: decay, clipping, averaging, accumulation, constraints, storage."""

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
    """The arguments common to all optimizers, in Keras's order; those after `name` are not Keras's.

    Args:
        weight_decay: decoupled decay `p <- p (1 - lr weight_decay)`, once before each update; None: off.
        clipnorm: each gradient is scaled down to at most this norm. At most one of the three clips; 0 is off.
        clipvalue: each gradient element is clipped to ±clipvalue.
        global_clipnorm: all gradients are scaled down together to at most this joint norm.
        use_ema: keep an exponential moving average of the parameters (slot `average`).
        ema_momentum: its decay, in [0, 1].
        ema_overwrite_frequency: every so many updates the parameters become their average; None: never.
        loss_scale_factor: gradients are divided by it (the loss was multiplied: `Optimizer.scale_loss`).
        gradient_accumulation_steps: int >= 2: one update for every so many calls, with the mean gradient. All else
            (clip, decay, schedule, average, constraint) happens once per update. None or 0: off.
        exclude_from_weight_decay: regular expressions, searched for in a parameter's path; a function
            `(path, parameter) -> bool`; a tree of bools like the parameters or a prefix of one (True: excluded), or a
            function of the parameters that returns such a tree.
        constraints: `{regex: function}`; the parameters whose path matches become `function(parameter)` last of all.
        sparse: "dense": a sparse gradient means its dense equal. "lazy": it touches only its rows and their slots.
        axis_name: gradients are summed over this mapped axis (inside `shard_map` or `pmap`) first of all.
        name: of the optimizer.
        state_dtype: how slots are kept between steps: "float32", "bfloat16", "float16", "float8", "int8", "int4", or a
            dict of these by slot name; None: in the dtype of the arithmetic. All but the first two are codes with a
            scale for each block (`storage.blockwise`). What a rule marks as exact stays float32, small arrays too.
        master_weights: what bfloat16 parameters keep besides, so that small updates are not lost: "float32", or
            "bf16+16" or "bf16+8", a correction of 16 or 8 bits (`storage.masters`). float16 ones can have "float32".
            None: nothing; ScheduleFreeAdamW's default is "float32".
        rounding: how a parameter of 16 bits is written: "nearest", or "stochastic", which is right on average.
        seed: of stochastic rounding; None: 0.
        engine: how it runs. "auto": the fastest way that is right for the platform and the sharding; on a CPU with a C
            compiler, loops made from the rule's own arithmetic, elsewhere XLA. "xla": always XLA. "native": the loops,
            and an error that says why where there can be none. `Kernel.describe` shows which it is.
        skip_nonfinite: a call whose gradients hold NaN or infinity changes nothing but the counter `skipped`.
        skip_spikes: so does a call whose gradients' joint norm is greater than so many times its running mean.
        offload: "pinned_host" keeps slots in host memory between steps; `{regex: "pinned_host"}` those in whose
            "path/slot" the expression is found.
        inject_hyperparams: True, a name or several: these hyperparameters are kept in the state (`state.hyperparams`),
            where `Kernel.replaced` changes them and `vmap` maps over them, instead of in the kernel.
        flat_state: True: the slots of small arrays lie in one buffer for each dtype between steps, so that a step over
            many of them hands over a third of the arrays. For parameters on one device. In the pure face
            `state.slots.unpack()` is then the tree. None: where it is faster they lie so from one step to the next,
            and whoever looks sees the tree. False: never.
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
                "`flat_state` and `offload` cannot be combined: slots in one buffer go nowhere by themselves. "
                f"Received: flat_state=True, offload={self.offload!r}"
            )
        object.__setattr__(self, "state_dtype", _forms(self.state_dtype))
        object.__setattr__(self, "offload", _offloaded(self.offload))
        object.__setattr__(self, "exclude_from_weight_decay", _names(self.exclude_from_weight_decay))
        object.__setattr__(self, "constraints", _pairs(self.constraints))
        object.__setattr__(self, "inject_hyperparams", _injected(self.inject_hyperparams))
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
        """The options with a decay mask that is a function of the parameters called on them."""
        if not isinstance(self.exclude_from_weight_decay, MaskOfParams):
            return self
        tree = params.unpack() if hasattr(params, "unpack") else params  # of packed parameters
        return self.bind({"exclude_from_weight_decay": Mask.of(self.exclude_from_weight_decay.function(tree))})

    def constraint(self, path: str) -> Callable[[Any], Any] | None:
        """The constraint of the parameter at `path`: the first that matches."""
        return next((f for pattern, f in self.constraints if re.search(pattern, path)), None)


_NAMES = [*fields_of(Options)]
EXTRAS = tuple(_NAMES[_NAMES.index("name") + 1 :])  # the options that Keras lacks


def refuse_unknown(who: str, arguments: dict[str, Any], known: Any) -> None:
    """Raises a TypeError for the first argument that `who` does not have, with the nearest that it has."""
    for name, value in arguments.items():
        if name not in known:
            close = ["learning_rate"] if name == "lr" else difflib.get_close_matches(name, list(known), n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"It knows {list(known)}."
            raise TypeError(f"{who} has no argument `{name}`. Received: {name}={value!r}. {hint}")


class Mask(NamedTuple):
    """The paths of a tree of bools, or of a prefix of the parameters' tree, and whether what is there is excluded."""

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
    """Whether a function has one argument that must be given."""
    try:
        known = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return False
    positional = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in positional) == 1 and not any(p.kind is p.VAR_POSITIONAL for p in known)


def _names(value: Any) -> Any:
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


def _injected(value: Any) -> Any:
    """True, the names, or None for none."""
    names = (value,) if isinstance(value, str) else value
    if isinstance(names, (list, tuple, set, frozenset)) and all(isinstance(name, str) for name in names):
        return tuple(sorted(names)) or None
    if value is not None and not isinstance(value, bool):
        raise TypeError(
            f"`inject_hyperparams` must be True, or names of hyperparameters. Received: inject_hyperparams={value!r}"
        )
    return value or None


def _pairs(value: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    pairs = tuple(value.items()) if isinstance(value, dict) else () if value is None else value
    if not (isinstance(pairs, (tuple, list)) and all(isinstance(x, (tuple, list)) and len(x) == 2 for x in pairs)):
        raise TypeError(f"`constraints` must map patterns to functions. Received: constraints={value!r}")
    for pattern, function in pairs:
        check_pattern("constraints", pattern)
        if not callable(function):
            raise TypeError(f"`constraints` must map patterns to functions. Received: {pattern!r}: {function!r}")
    return tuple((pattern, function) for pattern, function in pairs)


def _forms(value: Any) -> Any:
    """A form, or pairs of a slot and its form."""
    pairs = tuple(sorted(value.items())) if isinstance(value, dict) else value
    for form in (form for _, form in pairs) if isinstance(pairs, (tuple, list)) else [pairs]:
        if form is not None and form not in FORMATS:
            raise ValueError(
                f"`state_dtype` must be one of {list(FORMATS)}, or a dict of these by slot name. "
                f"Received: state_dtype={value!r}"
            )
    return tuple((slot, form) for slot, form in pairs) if isinstance(pairs, list) else pairs


def _offloaded(value: Any) -> Any:
    """The patterns of what is kept in host memory; None: nothing."""
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
    """Raises a TypeError or a ValueError if `pattern` is no regular expression."""
    if not isinstance(pattern, str):
        raise TypeError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({type(pattern).__name__})")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`{name}` must hold regular expressions. Received: {pattern!r} ({error})") from None
