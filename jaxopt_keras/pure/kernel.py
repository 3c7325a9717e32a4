"""The pure face: an optimizer as three pure, jitted functions, `init`, `update` and `step`."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding

from jaxopt_keras.engine.compiled import Compiled, shared
from jaxopt_keras.engine.core import Core, Program
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.pipeline import Program as Plain
from jaxopt_keras.engine.plan import Plan
from jaxopt_keras.engine.programs.around import plain_programs
from jaxopt_keras.engine.programs.offloaded import Offloaded
from jaxopt_keras.engine.programs.partitioned import Partitioned, warn_of_unused
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.numerics import Complemented, Complements, compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.paths import path_of
from jaxopt_keras.language.rule import Rule, as_scalar, fields_of
from jaxopt_keras.schedules import is_schedule


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
        kernel.program = rule if hasattr(rule, "children") else _program(rule, options or Options())
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
        x64 = bool(jax.config.jax_enable_x64)
        if x64 not in self._hyper:
            self._hyper[x64] = self.hyper()
        hyper = self._hyper[x64]
        if state.hyperparams or self._injects:
            self._check_injected(state, hyper)
            return _merged(hyper, state.hyperparams)
        return hyper

    @functools.cached_property
    def _hyper(self) -> dict[bool, dict[str, Any]]:
        """The hyperparameters as arrays, without and with 64-bit types."""
        return {}

    @functools.cached_property
    def _injects(self) -> bool:
        return bool(self.program.injected(self.hyper()))

    def _check_injected(self, state: State, hyper: dict[str, Any]) -> None:
        wanted, found = _names(self.program.injected(hyper)), _names(state.hyperparams)
        if wanted != found:
            raise ValueError(
                f"`state.hyperparams` must hold what this kernel injects: {wanted}. Received: {found}. Make the kernel "
                "with another `inject_hyperparams`, or take the state over with "
                "`state._replace(hyperparams=kernel.init(params).hyperparams)`."
            )

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
        if isinstance(program := _innermost(self.program), Partitioned):
            having = [g for g, values in state.hyperparams.items() if hyper.keys() <= values.keys()]
            if not having:
                raise ValueError(_not_injected(hyper, state, program))
            return functools.reduce(lambda s, group: self.in_group(s, group, **hyper), having, state)
        return state._replace(hyperparams=self._checked(program, state.hyperparams, hyper))

    def in_group(self, state: State, group: str, **hyper: Any) -> State:
        """`state` with other injected hyperparameters in one group, named by its pattern, or "default"."""
        program = _innermost(self.program)
        if not isinstance(program, Partitioned) or group not in program.names:
            names = program.names if isinstance(program, Partitioned) else ()
            raise ValueError(f"There is no group {group!r}. There are {[*names]}")
        own = self._checked(program.groups[group], state.hyperparams.get(group, {}), hyper)
        return state._replace(hyperparams=state.hyperparams | {group: own})

    def _checked(self, program: Any, known: dict[str, Any], hyper: dict[str, Any]) -> dict[str, Any]:
        rule = getattr(plain_programs(program)[0].core, "rule", None)
        fields = fields_of(Options) | (fields_of(type(rule)) if isinstance(rule, Rule) else {})
        for name, value in hyper.items():
            if name not in known:
                raise ValueError(
                    f"`{name}` is not in the state: there are {sorted(known)}. Received: {name}={value!r}. Use a "
                    f"kernel with other numbers, `kernel.replace({name}=...)`, which compiles nothing; or make the "
                    f"kernel with `inject_hyperparams={name!r}` and a number."
                )
        return known | _kept({n: as_scalar(fields[n], fields[n].check(n, value)) for n, value in hyper.items()})

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
            raise _explained(error, params=params) from error
        injected = self.program.injected(hyper)
        return state._replace(hyperparams=_kept(jax.tree.map(jnp.copy, injected))) if injected else state

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
            raise _explained(error, grads=grads, params=params) from error
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
            raise _explained(error, params=params, grads=grads) from error
        return params, moved._replace(hyperparams=state.hyperparams)

    def averaged(self, params: Any, state: State) -> Any:
        """The parameters to evaluate: their moving average under `use_ema`, else the rule's own (ScheduleFree's x).

        Where there is neither, they are `params`. A pure function; nothing is donated.
        """
        return self.compiled.averaged(params, state._replace(hyperparams={}), self.current(state))

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


def _program(rule: Any, options: Options) -> Any:
    """The program of a rule or a core.

    Raises:
        TypeError, ValueError: if rule and options do not fit.
    """
    core = Leafwise(rule) if isinstance(rule, Rule) else rule
    if core.schedule is not None and not is_schedule(core.schedule):
        raise TypeError(
            "`learning_rate` must be a number or a function of the step. Received: a function without arguments, "
            "which only the stateful face can call before each step."
        )
    _check_storage(rule, options)
    if options.sparse == "lazy" and getattr(rule, "grain", "") != "element":
        raise ValueError(
            f'`sparse="lazy"` works on single rows, and {type(rule).__name__} may need whole arrays. '
            'Received: sparse="lazy". Use `sparse="dense"`.'
        )
    plain = Plain(core, options)
    if isinstance(options.inject_hyperparams, tuple):
        known = core.arrays() | options.arrays()
        for name in set(options.inject_hyperparams) - known.keys():
            raise ValueError(
                f"`inject_hyperparams` must name run-time hyperparameters of {type(rule).__name__}: {sorted(known)}. "
                f"Received: {name!r}, which it has not, or which is a schedule or off."
            )
    return Offloaded(plain, options.offload) if options.offload else plain


def _check_storage(rule: Any, options: Options) -> None:
    """Refuses formats for slots that do not exist, or that the core does not describe."""
    wanted = options.state_dtype
    if wanted is None:
        return
    if not isinstance(rule, Rule):
        raise TypeError(
            f"`state_dtype` needs a `Rule`, which says what its slots are. Received: state_dtype={wanted!r} for "
            f"{type(rule).__name__}"
        )
    known = rule.slots()
    for slot, _ in wanted if isinstance(wanted, tuple) else ():
        if slot not in known:
            raise ValueError(f"`{slot}` is no slot of {type(rule).__name__}. It has {[*known]}")


def _is_on_one_device(p: Any) -> bool:
    return isinstance(p, jax.Array) and not isinstance(p, Tracer) and isinstance(p.sharding, SingleDeviceSharding)


def _merged(hyper: dict[str, Any], injected: dict[str, Any]) -> dict[str, Any]:
    """`hyper` with the values of `injected`, group by group where there are groups."""
    return hyper | {
        n: _merged(hyper[n], x) if isinstance(x, dict) else _value(hyper[n], x) for n, x in injected.items()
    }


def _value(like: Any, x: Any) -> Any:
    """An injected value as the compiled step takes it. A number put in the place of a decay gets its complement."""
    if not isinstance(like, Complemented):
        return x
    return Complemented(*x) if isinstance(x, Complements) else Complemented(x, 1 - x)


def _kept(hyper: dict[str, Any]) -> dict[str, Any]:
    """Hyperparameters as the state keeps them."""
    pair = lambda x: Complements(x.value, x.complement) if isinstance(x, Complemented) else x
    return jax.tree.map(pair, hyper, is_leaf=lambda x: isinstance(x, Complemented))


def _names(hyper: dict[str, Any]) -> list[str]:
    return sorted(
        f"{n}/{inner}" if inner else n for n, x in hyper.items() for inner in (x if isinstance(x, dict) else [""])
    )


def _innermost(program: Any) -> Any:
    """A program without the wrappers around it."""
    while len(program.children) == 1 and hasattr(program, "inner"):
        program = program.inner
    return program


def _not_injected(hyper: dict[str, Any], state: State, program: Partitioned) -> str:
    known = {group: sorted(state.hyperparams.get(group, ())) for group in program.names}
    return (
        f"No group has the injected hyperparameters {sorted(hyper)}. There are {known}. Make the group's kernel with "
        "`inject_hyperparams`, or use `kernel.replace(...)`, which needs no injection."
    )


def _explained(error: TypeError, **trees: Any) -> TypeError:
    """An error that names the first leaf that is no array; `error` itself if all are."""
    arrays = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, int, float, complex)
    for name, tree in trees.items():
        for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not isinstance(leaf, arrays):
                hint = ". Of an Equinox module take the arrays: `eqx.filter(model, eqx.is_inexact_array)`."
                return TypeError(
                    f"`{name}` must be a pytree of arrays. Received: {leaf!r} at `{path_of(key)}`"
                    f"{hint if callable(leaf) else ''}"
                )
    return error


def refuse_flat(kernel: Kernel, by: str) -> None:
    """Raises a ValueError for a kernel with `flat_state`, whose slots are no trees like the parameters."""
    if any(program.options.flat_state for program in plain_programs(kernel.program)):
        raise ValueError(
            f"`{by}` needs slots that mirror the parameters. Received: a kernel with flat_state=True. Leave it out."
        )
