"""The options of every optimizer: weight decay, clipping, averaging, accumulation, constraints, storage."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language import option_values as values
from jaxopt_keras.language.option_values import Format, Mask, MaskOfParams
from jaxopt_keras.language.paths import first_match
from jaxopt_keras.language.rule import COMPLEMENT, OFF_AT_ZERO, Amount, Count, Hyperparameters, Read, Within, fields_of

Formats = Format | dict[str, Format] | tuple[tuple[str, Format], ...]  # a tuple: as `read_formats` stores a dict
WindowLength = int | Callable[[Any], Any] | None
Limit = Annotated[float, Within(0, below=math.inf), OFF_AT_ZERO]


class KerasOptions(Hyperparameters):
    """The options that Keras has too, in its order. `Options` describes them."""

    weight_decay: Amount | None = None
    clipnorm: Limit | None = None
    clipvalue: Limit | None = None
    global_clipnorm: Limit | None = None
    use_ema: bool = False
    ema_momentum: Annotated[float, Within(0, 1), COMPLEMENT] = 0.99
    ema_overwrite_frequency: Count | None = None
    loss_scale_factor: Annotated[float, Within(above=0)] | None = None
    gradient_accumulation_steps: Annotated[WindowLength, Read(values.read_window_length)] = None
    name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        clips = {n: getattr(self, n) for n in ("clipnorm", "clipvalue", "global_clipnorm")}
        if sum(c is not None for c in clips.values()) > 1:
            received = ", ".join(f"{n}={c}" for n, c in clips.items())
            raise ValueError(
                f"Only one of `clipnorm`, `clipvalue` and `global_clipnorm` can be set. Received: {received}"
            )
        if self.use_ema and self.ema_overwrite_frequency == 0:
            raise ValueError(
                "`ema_overwrite_frequency` must be an integer >= 1, or None. Received: ema_overwrite_frequency=0"
            )

    def _is_traced(self, name: str, field: Any) -> bool:
        return super()._is_traced(name, field) and (self.use_ema or name != "ema_momentum")


class Options(KerasOptions):
    """The arguments common to all optimizers, in Keras's order. Keras lacks those after `name`.

    Args:
        weight_decay: decoupled decay `p <- p (1 - lr weight_decay)`, once before each update; None: off.
        clipnorm: the greatest norm of each gradient; a longer one is scaled down. Only one of the three clips can be
            set; 0 or None: off.
        clipvalue: the greatest absolute value of a gradient element; others are clipped to it.
        global_clipnorm: the greatest joint norm of all gradients; they are scaled down together.
        use_ema: keep an exponential moving average of the parameters (slot `average`).
        ema_momentum: the decay of the average of the parameters.
        ema_overwrite_frequency: the number of updates after which the parameters become their average; None: never.
        loss_scale_factor: the factor of the loss (`Optimizer.scale_loss`); gradients are divided by it.
        gradient_accumulation_steps: an int >= 2: the number of calls for one update, with the mean of their gradients
            (a window). Clip, decay, schedule, average and constraint happen once per update. A function of the number
            of updates made so far returns the length of the next window, at least 1. A call with `flush=True` is the
            last of its window. None or 0: off.
        schedule_counts: the step that schedules get with `gradient_accumulation_steps`: the number of "updates", as in
            optax, or of "calls", as in Keras (all windows count as whole ones). None: of updates; the Keras-style
            classes warn of a schedule of a class. Schedules of an optax transformation count updates, so that "calls"
            is refused for one.
        exclude_from_weight_decay: regular expressions, searched for in a parameter's path; a function
            `(path, parameter) -> bool`; a tree of bools like the parameters or a prefix of one (True: excluded); or a
            function of the parameters that returns such a tree.
        constraints: `{regex: function}`: at the end of an update, each parameter in whose path the expression is found
            becomes `function(parameter)`. The first expression that is found applies.
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
            a C compiler, native loops made from the rule's own arithmetic; on a GPU of NVIDIA, kernels made from it,
            once small ones had the right results there; elsewhere XLA. "xla": always XLA. "native": the loops or
            kernels, or an error that says why there are none. "pallas": on a TPU, a kernel that reads and writes each
            array with slots in blocks once; XLA for the rest. It has not run on a TPU yet; elsewhere it is interpreted,
            slowly, for tests. `Kernel.describe` shows the choice.
        skip_nonfinite: a call with NaN or infinity in its gradients changes nothing but the counter `skipped`; nor does
            one that would make a finite number in a parameter, slot or scalar NaN or infinite (in a slot of few bits:
            before it is rounded). To know that, a step reads its arrays twice. Where the gradients of a window of
            accumulation were finite and its results are not, the window starts anew. "gradients": only these are looked
            at, which costs much less. False: nothing is.
        skip_spikes: a number above 1: so does a call whose joint gradient norm is more than this many times its
            running mean. None: off.
        offload: "pinned_host" keeps slots in host memory between steps; `{regex: "pinned_host"}` keeps there the slots
            with a "path/slot" in which the expression is found. None: no slots.
        weighted_accumulation: True: each call is given the `weight` of its gradients, such as the number of tokens that
            they are a mean of, and an update has the mean `sum(w g) / sum(w)` over its window (and over `axis_name`).
            A gradient of weight 0 is not read. Without any weight there is no update. False: calls weigh alike.
        own_counts: True: each parameter counts its own updates (slot `own_count`), as in torch, and the rule has that
            count, for its bias correction and its first step. A parameter that joins late, or that has no gradient in
            some steps, is then updated as if it were trained alone. Schedules, averages and random bits follow the
            common count. For rules that keep no numbers for all arrays together. False: all have the common count.
        inject_hyperparams: True, a name or several: keep these hyperparameters in the state (`state.hyperparams`)
            instead of in the kernel, so that `Kernel.replaced` changes them and `vmap` maps over them. A number that is
            a schedule is kept there as the last step used it, and computed anew by each step.
        flat_state: True: the slots of small arrays (on a GPU with kernels, of any) are packed between steps, in few
            buffers for each dtype, so that a step over many of them dispatches a third of the arrays. For parameters on
            one device. In the pure face `state.slots.unpack()` then returns the tree. None: the stateful face packs
            them where that is faster, and unpacks them for a read. False: never.
    """

    exclude_from_weight_decay: Annotated[Any, Read(values.read_exclusion)] = ()
    constraints: Annotated[Any, Read(values.read_constraints)] = ()
    schedule_counts: Literal["updates", "calls", None] = None
    sparse: Literal["dense", "lazy"] = "dense"
    axis_name: Annotated[Any, Read(values.read_axes)] = None
    state_dtype: Annotated[Formats | None, Read(values.read_formats)] = None
    master_weights: Literal["float32", "bf16+16", "bf16+8", None] = None
    rounding: Literal["nearest", "stochastic"] = "nearest"
    seed: Count | None = None
    engine: Literal["auto", "xla", "native", "pallas"] = "auto"
    skip_nonfinite: Literal[False, True, "gradients"] = False
    skip_spikes: Annotated[float, Within(above=1, below=math.inf)] | None = None
    offload: Annotated[Any, Read(values.read_offload)] = None
    flat_state: bool | None = None
    inject_hyperparams: Annotated[Any, Read(values.read_injected)] = None
    weighted_accumulation: bool = False
    own_counts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gradient_accumulation_steps", "axis_name"):
            if self.sparse == "lazy" and getattr(self, name):
                raise ValueError(
                    f'`sparse="lazy"` cannot be combined with `{name}`: the sum of several sparse gradients is dense. '
                    f'Received: {name}={getattr(self, name)!r}. Use `sparse="dense"`.'
                )
        if self.weighted_accumulation and not self.gradient_accumulation_steps:
            raise ValueError(
                "`weighted_accumulation` weighs the calls of a window. Received: weighted_accumulation=True, "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}. Set the latter, or leave both out."
            )
        if self.schedule_counts == "calls" and callable(self.gradient_accumulation_steps):
            raise ValueError(
                '`schedule_counts="calls"` needs windows of one length. Received: a function as '
                '`gradient_accumulation_steps`. Use `schedule_counts="updates"`.'
            )
        if self.flat_state and self.offload:
            raise ValueError(
                "`flat_state` and `offload` cannot be combined: packed slots cannot be moved to host memory. "
                f"Received: flat_state=True, offload={self.offload!r}. Leave one of them out."
            )

    def skeleton(self) -> Self:
        unused = isinstance(self.ema_momentum, Array) and not self.use_ema
        off = {"inject_hyperparams": None} | ({"ema_momentum": Options.ema_momentum} if unused else {})
        return super().skeleton().bind(off)

    def schedule_step(self, updates: Any) -> Any:
        """Return the step of schedules in the update after `updates` others, which saturates."""
        k: Any = self.gradient_accumulation_steps
        if not k or self.schedule_counts != "calls":
            return updates
        return jnp.minimum(updates, jnp.iinfo(jnp.int32).max // k - 1) * k + (k - 1)

    def injects(self, name: str) -> bool:
        """Whether the hyperparameter `name` is kept in the state."""
        return self.inject_hyperparams is True or name in (self.inject_hyperparams or ())

    def reads_params(self) -> str | None:
        """Return the name of an option that reads the parameters, if one is on."""
        return next((name for name, off in _READ_PARAMS.items() if getattr(self, name) != off), None)

    def decays(self, path: str, p: Any) -> bool:
        """Whether the parameter at `path` decays."""
        if isinstance(self.exclude_from_weight_decay, MaskOfParams):
            raise TypeError(
                "`exclude_from_weight_decay` must be patterns, a tree, or a function of (path, parameter) in the "
                f"stateful face. Received: {self.exclude_from_weight_decay.function!r}, a function of all parameters"
            )
        if callable(self.exclude_from_weight_decay):
            return not self.exclude_from_weight_decay(path, p)
        return first_match(self.exclude_from_weight_decay, path) is None

    def for_params(self, params: Any) -> Self:
        """Return the options with a decay mask made by calling the function of the parameters, if there is one."""
        if not isinstance(self.exclude_from_weight_decay, MaskOfParams):
            return self
        tree = params.unpack() if hasattr(params, "unpack") else params  # only packed parameters have `unpack`
        return self.bind({"exclude_from_weight_decay": Mask.of(self.exclude_from_weight_decay.function(tree))})

    def constraint(self, path: str) -> Callable[[Any], Any] | None:
        """Return the first constraint that matches `path`, or None."""
        found = first_match((pattern for pattern, _ in self.constraints), path)
        return None if found is None else next(function for pattern, function in self.constraints if pattern == found)

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Return the regular expressions that are searched for in paths, by option."""
        excluded = self.exclude_from_weight_decay
        is_function = callable(excluded) or isinstance(excluded, MaskOfParams)  # masks of paths are functions too
        patterns: Any = () if is_function else excluded
        return {
            "exclude_from_weight_decay": patterns,
            "constraints": tuple(pattern for pattern, _ in self.constraints),
        }


# The options that read the parameters, with the values for which they do not.
_READ_PARAMS = {
    "weight_decay": None,
    "use_ema": False,
    "constraints": (),
    "master_weights": None,
    "rounding": "nearest",
}
KERAS = tuple(fields_of(KerasOptions))
EXTRAS = tuple(name for name in fields_of(Options) if name not in KERAS)  # Keras lacks them
