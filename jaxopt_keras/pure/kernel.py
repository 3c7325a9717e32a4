"""Kernels, the pure face: an optimizer as three pure, jitted functions, `init`, `update` and `step`."""

import functools
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from jaxopt_keras.engine.compiled import Compiled, call_donating, shared
from jaxopt_keras.engine.core import Core, Program
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.given import EMPTY, FLUSH, refuse_unused
from jaxopt_keras.engine.initial_state import initial_state
from jaxopt_keras.engine.parts import warn_of_overlooked
from jaxopt_keras.engine.plan import Plan
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.unused_patterns import paths_of, warn_of
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.other_names import KERNEL_METHODS, no_attribute, refuse_unknown
from jaxopt_keras.language.printing import call
from jaxopt_keras.language.rule import Rule, fields_of
from jaxopt_keras.pure import injection
from jaxopt_keras.pure.building import explained, program_of, refuse_no_floats
from jaxopt_keras.pure.extra import plain_options, refuse_unknown_keywords, with_extra
from jaxopt_keras.pure.kernel_text import parts
from jaxopt_keras.pure.minimizing import Minimizing
from jaxopt_keras.pure.numbers import Numbers

P = TypeVar("P")  # a pytree of parameters or gradients


class Kernel(Numbers, Minimizing, optax.GradientTransformationExtraArgs):
    """An optimizer as pure functions over pytrees: an `optax.GradientTransformationExtraArgs`, and more.

    Args:
        rule: a `Rule`, the update of one array; or a program of the engine, which needs no options.
        options: weight decay, clipping, averaging, accumulation, storage (`Options`). Default: None, no option.

    A kernel is a value: hashable, equal to a kernel with an equal rule and options, and static as a pytree. Kernels
    that differ only in numbers (rates, betas, decays) share one compiled program, which takes them as arguments; inside
    your own `jit` they are constants. A step uses the numbers of its kernel, whichever kernel made the state.
    `inject_hyperparams=True` keeps the numbers in the state instead.

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel = jk.adam(learning_rate=0.1)
    >>> params = {"w": jnp.array([1.0, -2.0])}
    >>> state = kernel.init(params)
    >>> for _ in range(100):
    ...     grads = jax.grad(lambda p: jnp.sum(p["w"] ** 2))(params)
    ...     params, state = kernel.step(params, state, grads)
    >>> bool(jnp.all(jnp.abs(params["w"]) < 0.2)), int(state.count)
    (True, 100)
    >>> init, update = kernel
    """

    program: Program

    def __new__(cls, rule: Any, options: Options | None = None) -> "Kernel":
        if options is not None and not isinstance(options, Options):
            raise TypeError(f"`options` must be `Options`. Received: options={options!r}")
        if isinstance(rule, type) or not (isinstance(rule, Rule) or hasattr(rule, "skeleton")):
            raise TypeError(f"`rule` must be an instance of a `Rule`. Received: rule={rule!r}")
        kernel = super().__new__(cls, None, None)  # type: ignore[arg-type]  # `init` and `update` are methods
        kernel.program = cast(Program, rule) if hasattr(rule, "children") else program_of(rule, options or Options())
        kernel._arrays = {}
        return kernel

    @classmethod
    def from_optax(cls, tx: Any, **options: Any) -> "Kernel":
        """The kernel of an optax transformation, with this library's `step` and options.

        Args:
            tx: an object with `init(params)` and `update(updates, state, params)`.
            **options: of `Options`, except `weight_decay`, which needs the rate of a `Rule`.

        Raises:
            TypeError: if `tx` lacks one of the two methods.
        """
        refuse_unknown("Kernel.from_optax", options, fields_of(Options))
        return cls(Foreign(tx), Options(**options))

    # --- a value ------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return iter((self.init, self.update))

    def __getitem__(self, i: Any) -> Any:
        return (self.init, self.update)[i]

    def __eq__(self, other: Any) -> bool:
        if self is other or type(other) is not type(self):
            return self is other
        return self._hash is not None and self._hash == other._hash and self.program == other.program

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return id(self) if self._hash is None else self._hash

    @functools.cached_property
    def _hash(self) -> int | None:
        """The hash; None if a field has none, such as a JAX array as the rate. Such a kernel equals only itself."""
        try:
            return hash(self.program)
        except TypeError:
            return None

    def __reduce__(self) -> Any:
        return Kernel, (self.program,)

    def __repr__(self) -> str:
        return call("Kernel", *parts(self.program))

    def __getattr__(self, name: str) -> Any:
        given = getattr(type(self), name, None)
        if given is not None:  # a property raised an AttributeError: raise that one
            return given.__get__(self)
        raise no_attribute(self, name, KERNEL_METHODS)

    # --- its parts ----------------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Any:
        """The rule of a kernel without groups; the core, if it has no rule.

        Raises:
            AttributeError: for a kernel with groups.
        """
        core = self._plain.core
        return core.rule if isinstance(core, Leafwise) else core

    @property
    def options(self) -> Options:
        """The options; with groups, those of the whole partition."""
        return self.program.options

    @property
    def core(self) -> Core:
        return self._plain.core

    @property
    def _plain(self) -> Any:
        plain = plain_programs(self.program)
        if len(plain) != 1 or not hasattr(plain[0], "core"):
            raise AttributeError(
                f"A kernel with groups has no rule of its own: see `program.children`. Received: {self!r}"
            )
        return plain[0]

    @functools.cached_property
    def skeleton(self) -> Program:
        """The program without its numbers. Equal skeletons share compiled code."""
        return self.program.skeleton()

    @functools.cached_property
    def compiled(self) -> Compiled:
        return shared(self.skeleton)

    def scale_loss(self, loss: Any, state: State) -> Any:
        """The loss times the loss scale, in float32 or wider, for use in the function to differentiate.

        The scale is that of `state` under `loss_scaled`, else `loss_scale_factor` if it is set, else 1.
        """
        scale, loss = self.program.loss_scale(state), jnp.asarray(loss)
        if scale is None:
            return loss
        loss = loss.astype(compute_dtype(loss.dtype))
        return loss * jnp.asarray(scale, loss.dtype)

    # --- the three functions ------------------------------------------------------------------------------------------

    def init(self, params: Any) -> State:  # type: ignore[override]  # a method, where optax has a field
        """The initial state for `params`, a pytree of arrays. For `jax.ShapeDtypeStruct`s it holds such structs too.

        Warns of patterns (of groups, exclusions, constraints, `offload`) that match no parameter, and of arrays of more
        than two axes that Muon leaves to its fallback unasked.

        A leaf that is neither float nor complex (a counter, a random key, a flag) is frozen: it has no slots, `step`
        returns it unchanged, and its gradient is None, float0 or not of floats.

        Raises:
            TypeError: for a leaf that is not an array, or if none is of floats or complex numbers.
        """
        refuse_no_floats(params)
        warn_of(self.program.unused(paths_of(params)), stacklevel=2)
        state = self.initial(params)  # raises for what is no array
        warn_of_overlooked(self.program, params, stacklevel=2)
        return state

    def initial(self, params: Any) -> State:
        """`init` without warnings."""
        hyper = self.hyper()
        try:
            state = initial_state(self.skeleton, self.compiled, params, hyper)
        except (TypeError, ValueError, RuntimeError) as error:
            raise explained(error, params=params) from error
        return self.keep(injection.to_state(jax.tree.map(jnp.copy, self.program.injected(hyper))), state)

    def update(  # type: ignore[override]
        self, grads: P, state: State, params: Any = None, *, full_precision: bool = False, **extra: Any
    ) -> tuple[P, State]:
        """The optax protocol: returns amounts to add to `params`, and the next state.

        The order of arguments is optax's: gradients, state, parameters; that of `step` is parameters, state, gradients.
        `grads` and `params` have the same structure, so that exchanged ones cannot be noticed: pass them by keyword if
        in doubt.

        Args:
            grads: a pytree like `params`, also of `IndexedSlices` or `BCOO`. None leaves the parameter unchanged.
            state: the result of `init` or of the last call. It is not donated.
            params: the parameters. May be None (default) if neither the rule nor the options read them.
            full_precision: True gives amounts in the dtype of the arithmetic, float32 for bfloat16 and float16
                gradients, so that `optax.apply_updates` rounds once. False (default) gives the dtypes of the gradients.
            **extra: `value`, the loss of the gradients, for a rule that needs it (Polyak steps);
                `value_fn`, the loss as a function of the parameters, for one that takes a second gradient (SAM), and
                the function's own keywords, such as the batch;
                `weight`, a number >= 0, for `weighted_accumulation`: the number of tokens or samples of the gradients;
                `flush`, a bool, for `gradient_accumulation_steps`: True ends the window with this call;
                or arguments of an optax transformation that takes more than gradients (`value`, `grad`, `value_fn`,
                ...). A function among them is a part of the compiled program: outside `jit`, pass the same one each
                time. Other kernels ignore them, as callers of `optax.GradientTransformationExtraArgs` expect, but for
                `weight` and `flush`. All may be traced.

        An amount is None where the gradient is None.

        Raises:
            TypeError: for a `weight` or `flush` without effect. ValueError: if a structure or a shape does not match.
        """
        hyper = with_extra(self.program, self.current(state), extra)
        name = "update_wide" if full_precision else "update"
        run = self.compiled.on(name, None, state._replace(hyperparams={}))
        return self._called(run, grads, state, params, hyper, grads=grads, params=params, state=state)

    def step(self, params: P, state: State, grads: Any, *, donate: bool = True, **extra: Any) -> tuple[P, State]:
        """Returns new `params` and `state` from one fused pass. Both arguments are donated: do not use them again.

        Nothing is donated inside a transformation (`jax.grad`, `jax.vmap`, ...), whose caller still has the arrays, nor
        in a call in which one array occurs twice, such as tied parameters.

        The order of arguments is that of the results, so that `jit` can reuse the memory; `update` has optax's order.
        Exchanged `params` and `grads` cannot be noticed, since their structures are the same; keywords are safe.

        Args:
            params: a pytree of arrays.
            state: the result of `init` or of the last call.
            grads: as in `update`.
            donate: False keeps the old `params` and `state` usable, at the cost of a copy. Default: True.
            **extra: as in `update`.

        Raises:
            ValueError: if a structure or a shape does not match. TypeError: for a leaf of a wrong kind, or a keyword
            that the transformation does not take. RuntimeError: if an array was donated to an earlier step.
        """
        hyper = self.given(state, extra)
        return self._called(
            self._step(params, state, donate), params, state, grads, hyper, params=params, grads=grads, state=state
        )

    def flush(self, params: P, state: State, *, donate: bool = True) -> tuple[P, State]:
        """End the window of accumulation now, without gradients: a step with the mean of those accumulated so far.

        It is for the end of an epoch. If nothing was accumulated, nothing changes and nothing is counted. A parameter
        whose accumulated gradients are all zeros, or missing, does not change. In a loop that knows its last batch,
        `step(params, state, grads, flush=is_last)` does the same in one program.

        Args:
            params, state, donate: as in `step`.

        Returns:
            New `params` and `state`.

        Raises:
            TypeError: for a kernel that accumulates no gradients.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel = jk.sgd(1.0, gradient_accumulation_steps=4)
        >>> params, state = jnp.zeros(()), kernel.init(jnp.zeros(()))
        >>> for g in (1.0, 3.0):
        ...     params, state = kernel.step(params, state, jnp.float32(g))
        >>> params, state = kernel.flush(params, state)
        >>> float(params), int(state.count)
        (-2.0, 1)
        """
        refuse_unused(plain_options(self.program), {FLUSH})
        hyper = self.program.offered(self.current(state), {FLUSH: True, EMPTY: True})
        none = jax.tree.map(lambda p: None, params)
        return self._called(self._step(params, state, donate), params, state, none, hyper, params=params, state=state)

    def averaged(self, params: P, state: State) -> P:
        """The parameters to evaluate: their moving average under `use_ema`, else the rule's average (ScheduleFree's x).

        Without either, they are `params`. Nothing is donated.
        """
        hyper = self.current(state)
        try:
            return self.compiled.averaged(params, state._replace(hyperparams={}), hyper)
        except (TypeError, ValueError, RuntimeError) as error:
            raise explained(error, params=params, state=state) from error

    def describe(self, params: Any, state: State | None = None) -> Plan:
        """The plan of a step over `params`, arrays or `jax.ShapeDtypeStruct`s. It prints as a table.

        Each line is a group of arrays with the same rule, dtype, rate, weight decay and storage: their number, the
        bytes of their state, and the format of each slot, with the reason if it is not the `state_dtype` that was asked
        for. In a partition the group's pattern precedes the rule; a parameter without decay is "excluded".

        Args:
            params: a pytree of arrays, or of such structs.
            state: one of the kernel, such as one from another platform. None (default): that of `init`.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> plan = jk.lion(state_dtype="int8").describe({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
        >>> for group in plan.groups:
        ...     print(group.paths, group.kind.slots, group.bytes)
        ['bias'] ('momentum float32 (fewer than 4096 elements)',) 1024
        ['kernel'] ('momentum int8 in blocks',) 16640
        """
        return self.program.describe(params, state).noted(self.program.unused(paths_of(params)))

    def given(self, state: State, extra: dict[str, Any]) -> dict[str, Any]:
        """The run-time values of a step from `state` with the keywords `extra`.

        Raises:
            TypeError: for a keyword that the kernel does not take.
        """
        refuse_unknown_keywords(self.program, extra)
        return with_extra(self.program, self.current(state), extra)

    def _step(self, params: Any, state: State, donate: bool) -> Any:
        """The compiled step for these arguments."""
        kept = params, state._replace(hyperparams={})
        plain = self.compiled.on("step", *kept)
        return functools.partial(call_donating, self.compiled.on("step_donating", *kept), plain) if donate else plain

    def _called(self, run: Any, first: Any, state: State, third: Any, hyper: Any, /, **trees: Any) -> tuple[Any, State]:
        """The results of a compiled function. Its error names the leaf of `trees` that is no array, or is donated."""
        try:
            result, moved = run(first, state._replace(hyperparams={}), third, hyper)
        except (TypeError, ValueError, RuntimeError) as error:
            raise explained(error, **trees) from error
        return result, self.keep(state.hyperparams, moved)


jax.tree_util.register_static(Kernel)
