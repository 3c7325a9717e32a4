"""The pure face: an optimizer as three pure, jitted functions, `init`, `update` and `step`."""

import functools
from collections.abc import Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.compiled import Compiled, shared
from jaxopt_keras.engine.core import Core, Program
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.plan import Plan
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.programs.partitioned import Partitioned, warn_of_unused
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.pure import injection
from jaxopt_keras.pure.building import explained, program_of


class Kernel(optax.GradientTransformationExtraArgs):
    """An optimizer as pure functions over pytrees: an `optax.GradientTransformationExtraArgs`, and more.

    Args:
        rule: a `Rule`, what it does to one array; or a program of the engine, which needs no options.
        options: what surrounds the rule: decay, clipping, averaging, accumulation (`Options`).

    A kernel is a value: equal to another of equal rule and options, hashable, static where JAX wants a pytree. Kernels
    that differ only in numbers (rates, betas, decays) share one compiled program, which takes the numbers as arguments;
    within a `jit` of yours they are constants. The numbers are the kernel's, not the state's: a state goes on with the
    numbers of the kernel that it is given to. `inject_hyperparams=True` keeps them in the state instead.

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
        is_program = hasattr(rule, "children")
        kernel.program = cast(Program, rule) if is_program else program_of(rule, options or Options())
        return kernel

    @classmethod
    def from_optax(cls, tx: Any, **options: Any) -> "Kernel":
        """Any optax transformation with this library's `step` and options.

        Args:
            tx: an object with `init(params)` and `update(updates, state, params)`.
            **options: of `Options`, except `weight_decay`, which needs a rate of ours.

        Raises:
            TypeError: if `tx` has not those two methods.
        """
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
        """None for a kernel with a field that has no hash, such as a JAX array as the rate: it equals only itself."""
        try:
            return hash(self.program)
        except TypeError:
            return None

    def __reduce__(self) -> Any:
        return Kernel, (self.program,)

    def __repr__(self) -> str:
        return f"Kernel({self.program!r})"

    # --- what it is made of -------------------------------------------------------------------------------------------

    @property
    def rule(self) -> Any:
        """The rule, or the core, of a kernel without groups.

        Raises:
            AttributeError: for a kernel with groups.
        """
        core = self._plain.core
        return core.rule if isinstance(core, Leafwise) else core

    @property
    def options(self) -> Options:
        """The options; of groups, those of the whole."""
        return self.program.options

    @property
    def core(self) -> Core:
        return self._plain.core

    @property
    def _plain(self) -> Any:
        plain = plain_programs(self.program)
        if len(plain) != 1 or not hasattr(plain[0], "core"):
            raise AttributeError(f"A kernel of groups has no rule of its own: see `program.children`. It is {self!r}")
        return plain[0]

    @functools.cached_property
    def skeleton(self) -> Program:
        """The program without its numbers: equal ones share compiled code."""
        return self.program.skeleton()

    @functools.cached_property
    def compiled(self) -> Compiled:
        return shared(self.skeleton)

    def replace(self, **numbers: Any) -> "Kernel":
        """The kernel with other hyperparameters; nothing is compiled for it.

        Of a kernel with groups, in every group that has all of them.

        >>> import jaxopt_keras as jk
        >>> jk.adam(1e-3).replace(learning_rate=1e-4) == jk.adam(1e-4)
        True

        Raises:
            ValueError: for a name that it does not have, or a value out of its range.
        """
        return Kernel(self.program.replaced(**numbers))

    # --- numbers ------------------------------------------------------------------------------------------------------

    def hyper(self) -> dict[str, Any]:
        """The run-time hyperparameters by name, as scalar arrays; of groups, a dict for each group."""
        with jax.ensure_compile_time_eval():
            return self.program.hyper()

    def current(self, state: State) -> dict[str, Any]:
        """The hyperparameters of a step from `state`: the kernel's, but for those that are injected.

        Raises:
            TypeError: if it is no state. ValueError: if it holds other hyperparameters than the kernel injects.
        """
        if not isinstance(state, State):
            raise TypeError(
                "`state` must be what `init` or the last call returned. Received: a value of type "
                f"{type(state).__name__}"
            )
        dtype = jnp.result_type(float)  # another one with 64-bit types
        if dtype not in self._hyper:
            self._hyper[dtype] = self.hyper()
        hyper = self._hyper[dtype]
        if state.hyperparams or self._injects:
            injection.check(self.program, state.hyperparams, hyper)
            return injection.merged(hyper, state.hyperparams)
        return hyper

    @functools.cached_property
    def _hyper(self) -> dict[Any, dict[str, Any]]:
        """The hyperparameters as arrays, by the default float dtype."""
        return {}

    @functools.cached_property
    def _injects(self) -> bool:
        return bool(self.program.injected(self.hyper()))

    def replaced(self, state: State, **hyper: Any) -> State:
        """`state` with other injected hyperparameters, without a new compilation.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> kernel = jk.sgd(0.1, inject_hyperparams="learning_rate")
        >>> state = kernel.replaced(kernel.init(jnp.zeros(2)), learning_rate=0.5)
        >>> float(state.hyperparams["learning_rate"])
        0.5

        Of a kernel with groups, in every group that has all of them; `in_group` for one of them.

        Raises:
            ValueError: for a name that is not injected, or a value out of its range.
        """
        self.current(state)
        return state._replace(hyperparams=injection.replaced(self.program, state.hyperparams, hyper))

    def in_group(self, state: State, group: str, **hyper: Any) -> State:
        """`state` with other injected hyperparameters in one group, named by its pattern, or "default"."""
        return state._replace(hyperparams=injection.in_group(self.program, state.hyperparams, group, hyper))

    def scale_loss(self, loss: Any, state: State) -> Any:
        """The loss times the loss scale, in float32 at least: the function to differentiate.

        The scale is that of `state` under `loss_scaled`, `loss_scale_factor` where that is given, else 1.
        """
        scale, loss = self.program.loss_scale(state), jnp.asarray(loss)
        if scale is None:
            return loss
        loss = loss.astype(compute_dtype(loss.dtype))
        return loss * jnp.asarray(scale, loss.dtype)

    # --- the three functions ------------------------------------------------------------------------------------------

    def init(self, params: Any) -> State:  # type: ignore[override]  # a method in the place of a field
        """The state for `params`, a pytree of arrays. Of `jax.ShapeDtypeStruct`s: the state's own.

        Raises:
            TypeError: for a leaf that is neither float nor complex.
        """
        hyper = self.hyper()
        if isinstance(self.program, Partitioned):
            warn_of_unused(self.program, params)
        try:
            leaves = jax.tree.leaves(params)
            if any(isinstance(p, jax.ShapeDtypeStruct) for p in leaves):
                state = jax.eval_shape(self.compiled.init, params, hyper)
            elif all(map(_is_on_one_device, leaves)):
                state = self.compiled.init_on_one_device(params, hyper)
            else:
                state = self.compiled.init(params, hyper)
        except TypeError as error:
            raise explained(error, params=params) from error
        injected = self.program.injected(hyper)
        return state._replace(hyperparams=injection.kept(jax.tree.map(jnp.copy, injected))) if injected else state

    def update(  # type: ignore[override]
        self, grads: Any, state: State, params: Any = None, *, full_precision: bool = False, **extra: Any
    ) -> tuple[Any, State]:
        """The optax protocol: amounts to add to `params`, and the next state.

        Args:
            grads: a pytree like `params`; None for a leaf that is not to move; `IndexedSlices` or `BCOO` leaves too.
            state: of `init` or the last call; not donated.
            params: may be left out where neither rule nor options read them.
            full_precision: True: amounts in the dtype of the arithmetic, float32 for bfloat16 and float16 gradients, so
                that `optax.apply_updates` rounds once. False: in the dtypes of the gradients, as optax's are.
            **extra: for a transformation of optax's that takes more than gradients (`value`, `grad`, `value_fn`, ...).
                A function among them is a part of the compiled program: outside `jit`, pass the same one each time.
                Otherwise accepted and ignored, as callers of `optax.GradientTransformationExtraArgs` expect.

        An amount is None where the gradient is None.
        """
        hyper = self._with(self.current(state), extra)
        run = self.compiled.update_wide if full_precision else self.compiled.update
        try:
            updates, moved = run(grads, state._replace(hyperparams={}), params, hyper)
        except TypeError as error:
            raise explained(error, grads=grads, params=params) from error
        return updates, moved._replace(hyperparams=state.hyperparams)

    def step(self, params: Any, state: State, grads: Any, *, donate: bool = True, **extra: Any) -> tuple[Any, State]:
        """New `params` and `state` in one fused pass. Both arguments are donated: do not use them afterwards.

        Args:
            params: a pytree of arrays.
            state: of `init` or the last call.
            grads: as in `update`.
            donate: False keeps `params` and `state` usable, at the cost of a copy.
            **extra: as in `update`, for a transformation of optax's that takes more than gradients.

        Raises:
            ValueError: if the structure or a shape does not fit. TypeError: for a leaf of a wrong kind, or a keyword
            that no transformation takes.
        """
        hyper = self.given(state, extra)
        run = self.compiled.step_donating if donate else self.compiled.step
        try:
            params, moved = run(params, state._replace(hyperparams={}), grads, hyper)
        except TypeError as error:
            raise explained(error, params=params, grads=grads) from error
        return params, moved._replace(hyperparams=state.hyperparams)

    def averaged(self, params: Any, state: State) -> Any:
        """The parameters to evaluate: their moving average under `use_ema`, else the rule's own (ScheduleFree's x).

        Where there is neither, they are `params`. A pure function; nothing is donated.
        """
        hyper = self.current(state)
        return self.compiled.averaged(params, state._replace(hyperparams={}), hyper)

    def describe(self, params: Any) -> Plan:
        """The plan of a step over `params`, arrays or `jax.ShapeDtypeStruct`s: a value that prints as a table.

        Each line is a group of arrays of the same rule, dtype and storage: how many, the bytes of their state, and the
        form of each slot, with the reason where it is not the one that `state_dtype` asked for.

        >>> import jax.numpy as jnp, jaxopt_keras as jk
        >>> plan = jk.lion(state_dtype="int8").describe({"kernel": jnp.zeros((64, 256)), "bias": jnp.zeros(256)})
        >>> for group in plan.groups:
        ...     print(group.paths, group.kind.slots, group.bytes)
        ['bias'] ('momentum float32 (fewer than 4096 elements)',) 1024
        ['kernel'] ('momentum int8 in blocks',) 16640
        """
        return self.program.describe(params)

    def given(self, state: State, extra: dict[str, Any]) -> dict[str, Any]:
        """The run-time values of a step from `state` with the keywords `extra`.

        Raises:
            TypeError: for a keyword that no transformation takes.
        """
        if extra and not self._is_foreign:
            raise TypeError(f"`step` takes `params`, `state`, `grads` and `donate`. Received: {sorted(extra)} besides")
        return self._with(self.current(state), extra)

    @property
    def _is_foreign(self) -> bool:
        plain = plain_programs(self.program)
        return len(plain) == 1 and isinstance(getattr(plain[0], "core", None), Foreign)

    def _with(self, hyper: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """The run-time values of a call: hyperparameters, and keywords that a transformation of optax's takes."""
        return hyper | self.core.extra(extra) if extra and self._is_foreign else hyper  # type: ignore[attr-defined]


jax.tree_util.register_static(Kernel)


def _is_on_one_device(p: Any) -> bool:
    return isinstance(p, jax.Array) and not isinstance(p, Tracer) and isinstance(p.sharding, SingleDeviceSharding)
