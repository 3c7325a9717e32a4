"""One call of an optimizer, from gradients to parameters.

The order of the stages: sum over the mapped axis, unscale, guard, accumulate, dequantize, clip, decay, rule, average,
constrain, quantize.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax.numpy as jnp
import optax

from jaxopt_keras.engine import core, slot_storage
from jaxopt_keras.engine import second as second_gradient
from jaxopt_keras.engine.core import Core, Layout, Now, Slots
from jaxopt_keras.engine.cores.foreign import Foreign
from jaxopt_keras.engine.given import EMPTY, FLUSH, FUNCTION, LOSS, WEIGHT, kept_only, with_given
from jaxopt_keras.engine.gradients import collected, read_gradient, read_loss, unscaled
from jaxopt_keras.engine.kinds import Kinds
from jaxopt_keras.engine.native import native, none_is_available
from jaxopt_keras.engine.one_kernel import in_one_kernel
from jaxopt_keras.engine.one_pass import in_one_pass
from jaxopt_keras.engine.plan import Plan, plan
from jaxopt_keras.engine.probe import before, before_parameters
from jaxopt_keras.engine.slot_packing import LOOSE, form_of, why_unpack
from jaxopt_keras.engine.slot_sharding import shard_like
from jaxopt_keras.engine.slot_storage import Stored, upcast
from jaxopt_keras.engine.stages import accumulate, average, guard, own_counts
from jaxopt_keras.engine.stages.branches import either
from jaxopt_keras.engine.stages.own_counts import OWN_COUNT
from jaxopt_keras.engine.state import State
from jaxopt_keras.engine.state_check import check_blocks, check_names, check_slots
from jaxopt_keras.engine.unused_patterns import Unused, unused
from jaxopt_keras.engine.update import dequantized, update_all
from jaxopt_keras.engine.write_back import zero_amount
from jaxopt_keras.language.hyperparameters import scheduled_at, schedules_of
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.places import platform
from jaxopt_keras.packing.slots import pack_slots
from jaxopt_keras.packing.trees import Packed, packed_like, unpacked
from jaxopt_keras.storage.masters import MASTER


@dataclass(frozen=True)
class Program(core.Program):
    """Runs a core within the stages of `options`."""

    core: Core
    options: Options
    watched: bool = False  # a guard around several programs looks at the results

    def __post_init__(self) -> None:
        if isinstance(self.core, Foreign):
            self.core.check(self.options)

    def hyper(self) -> dict[str, Any]:
        return self.core.arrays() | self.options.arrays()

    def injected(self, hyper: dict[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in hyper.items() if self.options.injects(name)}

    def schedules(self, injected: bool = True) -> dict[str, Any]:
        names = self.core.schedules() | schedules_of(self.options)
        return {n: lambda step, n=n: self.at({}, step)[n] for n in names if not injected or self.options.injects(n)}

    def offered(self, hyper: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        takes = {
            LOSS: self.core.needs_loss,
            FUNCTION: self.core.needs_function,
            WEIGHT: self.options.weighted_accumulation,
            EMPTY: True,
        }
        takes[FLUSH] = bool(self.options.gradient_accumulation_steps)
        return with_given(hyper, {name: x for name, x in given.items() if takes[name]})

    def at(self, hyper: dict[str, Any], step: Any) -> dict[str, Any]:
        step = self.options.schedule_step(step)
        return hyper | self.core.scheduled(step) | scheduled_at(self.options, step)

    def skeleton(self) -> Self:
        return dataclasses.replace(self, core=self.core.skeleton(), options=self.options.skeleton())

    def replaced(self, **numbers: Any) -> Self:
        known = self.hyper()
        for name, value in numbers.items():
            if name not in known:
                raise ValueError(
                    f"`{name}` is not a run-time hyperparameter of this optimizer. Received: {name}={value!r}. There "
                    f"are {sorted(known)}"
                )
        own = {name: value for name, value in numbers.items() if name in self.options.traced()}
        rest = {name: value for name, value in numbers.items() if name not in own}
        return dataclasses.replace(self, core=self.core.replaced(**rest), options=self.options.replaced(**own))

    def describe(self, params: Any, state: Any = None) -> Plan:
        return plan(self, params, state)

    def parts(self, params: Any) -> list[tuple[Core, Layout, list[Any]]]:
        return [(self.core, *Layout.read(unpacked(params), self.options))]

    def unused(self, paths: Sequence[str]) -> list[Unused]:
        if not paths:  # optax's `tree_map_params` passes an empty tree
            return []
        searched = self.options.patterns() | self.core.patterns()
        found = [x for argument, patterns in searched.items() for x in unused(argument, patterns, paths)]
        slots = [f"{path}/{slot}" for path in paths for slot in self._slot_names([])]
        return found + unused("offload", self.options.offload or (), slots)

    def loss_scale(self, state: State) -> Any:
        return self.at(self.options.arrays(), state.count).get("loss_scale_factor")

    def init(self, params: Any, hyper: dict[str, Any]) -> State:
        """Return the state of fresh `params`. Compiled, it shares no buffer with them."""
        if self._must_unpack(params):
            return self.init(params.unpack(), hyper)
        layout, stored = Layout.read(params, self.options)
        slots, scalars = self._initial(layout, stored, self.at(hyper, jnp.zeros((), jnp.int32)))
        everything = zip(slots, stored, layout.leaves, strict=True)
        slots = [shard_like(s, p, self.core.kinds(leaf, p)) for s, p, leaf in everything]
        scalars |= guard.init(self.options)
        trees: Any = layout.by_slot(self._slot_names(slots), slots)
        if self.options.flat_state:
            trees = pack_slots(trees, LOOSE, form_of(self.core, layout, stored))
        return State(jnp.zeros((), jnp.int32), {}, scalars, trees)

    def _initial(self, layout: Layout, stored: list[Any], hyper: dict[str, Any]) -> tuple[list[Slots], Slots]:
        """Return the slots of fresh parameters, and the scalars without those of the guard."""
        work = [upcast(p) for p in stored]
        slots, scalars = self.core.init(layout, work, hyper)
        empty: list[dict[str, bool]] = [{} for _ in slots]
        if self.options.state_dtype:
            kinds = Kinds.read(self.core, layout, work)
            some, (arrays,) = kinds.one_of_each(layout, work)
            zeros = slot_storage.known_zeros(lambda *x: self.core.init(some, *x)[0], arrays, hyper)
            empty = [zeros[k] for k in kinds.of]
        everything = zip(layout.leaves, stored, slots, empty, strict=True)
        slots = [slot_storage.initial_slots(self.core, self.options, *x) for x in everything]
        if self.options.use_ema:
            slots = [s | {average.AVERAGE: p} for s, p in zip(slots, work, strict=True)]
        if self.options.own_counts:
            slots = [s | own_counts.first() for s in slots]
        if self.options.gradient_accumulation_steps:
            accumulate.init(self.options, slots, scalars, work, self.core.needs_loss)
        return slots, scalars

    def _slot_names(self, slots: list[Slots]) -> list[str]:
        """Return the names of all possible slots, whatever the parameters are, and of any others in `slots`."""
        around = {MASTER: self.options.master_weights, average.AVERAGE: self.options.use_ema}
        around |= {accumulate.SUM: self.options.gradient_accumulation_steps, OWN_COUNT: self.options.own_counts}
        possible = [*self.core.slot_names(), *(name for name, is_on in around.items() if is_on)]
        return [*dict.fromkeys([*possible, *(name for each in slots for name in each)])]

    def call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        check_blocks(state.slots, self.options)
        if write:
            return self.on_engine(self.bare_step)(params, state, grads, hyper, reduce=reduce)
        return self.on_engine(self.bare_update)(grads, state, params, hyper, reduce=reduce)

    def on_engine(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Run `function` on the engine of the options. Applied here, so that each program in a tree has its own."""
        engine, quantized = self.options.engine, self.options.state_dtype is not None
        # Without a backend it is faster only for quantized slots, which it fuses on a GPU.
        if engine in ("xla", "pallas") or (engine == "auto" and not quantized and none_is_available()):
            return function
        return native(function, strict=engine == "native")

    # Two functions, since the k-th result of a native one takes the memory of its k-th argument.
    def bare_step(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """Compute `step` in plain JAX operations."""
        if isinstance(params, Packed) and not isinstance(grads, Packed):
            grads = params.like(grads)
        return self._call(params, state, grads, hyper, reduce, write=True)

    def bare_update(self, grads: Any, state: State, params: Any, hyper: dict[str, Any], reduce: bool = True) -> Any:
        """Compute `update` in plain JAX operations.

        Raises:
            ValueError: without `params`, if the options or the rule read them.
        """
        if params is not None:
            return self._call(params, state, grads, hyper, reduce, write=False)
        Layout.read(None, self.options, grads)  # refuses leaves that are not arrays
        if name := self.options.reads_params():
            raise ValueError(f"`{name}` needs the parameters: call `update(grads, state, params)`.")
        try:
            return self._call(None, state, grads, hyper, reduce, write=False)
        except (TypeError, AttributeError) as error:  # arithmetic with None
            raise ValueError("This optimizer needs the parameters: call `update(grads, state, params)`.") from error

    def _call(self, params: Any, state: State, grads: Any, hyper: dict[str, Any], reduce: bool, write: bool) -> Any:
        """Compute `call` in plain JAX operations."""
        like = params if write else grads
        if self._must_unpack(like):
            hyper = second_gradient.with_packed(hyper, like)
            out, state = self._call(unpacked(params), state, unpacked(grads), hyper, reduce, write)
            return like.like(out), state
        layout, stored = Layout.read(params, self.options, None if write else grads)
        hyper = self.at(hyper, state.count)
        run, second = second_gradient.needed(hyper) if self.core.needs_function else None, None
        hyper = {name: x for name, x in hyper.items() if name != FUNCTION}
        trees, scalars = unpacked(state.slots), state.scalars
        slots = layout.by_leaf(trees)
        if not self.core.any_slots:
            self._check_names(trees, slots, scalars, hyper)
            if None not in stored:
                initial = lambda layout, stored: self._initial(layout, stored, hyper)[0]
                check_slots(self.core, layout, stored, slots, initial, all_exact=bool(self.options.state_dtype))
        collect = functools.partial(self._collected, hyper, reduce)
        own_loss = read_loss(hyper) if self.core.needs_loss else None
        prepared = lambda: collect(self._gradients(layout, stored, grads), own_loss)
        gradients, loss, hyper = prepared()
        if run is not None:
            self._check_second(reduce)
            everything = Now.at(state.count, hyper, loss), layout, gradients, stored, slots, scalars

            def read(loss: Any, grads: list[Any]) -> tuple[Any, list[Any]]:
                grads, loss, _ = collect(self._read(layout, stored, grads), loss)
                return loss, grads

            second = evaluate = second_gradient.evaluation(run, layout, stored, read)
            if not self.core.searches:
                gradients, second = second_gradient.with_second(self.core, self.options, *everything, evaluate=evaluate)
        # A guard on a TPU reads gradients of 16 bits twice, instead of storing them in 32 for the step.
        again = platform() == "tpu" and run is None and (self.options.axis_name is None or not reduce)
        accumulates = bool(self.options.gradient_accumulation_steps)
        alone = self.core.elementwise and not self.core.joint and not self.core.needs_function
        one_pass = self.options.engine == "pallas" and write and alone

        def update(
            gradients: list[Any], slots: list[Slots], scalars: Slots, loss: Any = loss, one_pass: bool = one_pass
        ) -> Any:
            now = Now.at(state.count, hyper, loss)._replace(second=second)
            watched = self.watched or guard.looks_at_results(self.options)
            run = functools.partial(update_all, self.core, self.options, watched, join=accumulates or not watched)
            everything = gradients, stored, slots, scalars, state.count, now, write
            if one_pass:
                run = functools.partial(in_one_pass, run, self.options, layout.flatten(grads, "grads"))
            out, slots, scalars = run(layout, *everything)
            return (out, optax.safe_increment(state.count)), slots, scalars

        # Under accumulation a parameter may be updated by earlier gradients, without one in this call.
        updated = [s.get(accumulate.SUM) if g is None else g for g, s in zip(gradients, slots, strict=True)]

        def idle(slots: list[Slots], scalars: Slots) -> Any:
            amounts = [zero_amount(g, p) for g, p in zip(updated, stored, strict=True)]
            return (stored if write else amounts, state.count), slots, scalars

        def proceed(slots: list[Slots], scalars: Slots, kept: Any = None, update: Any = update) -> Any:
            grads, total, given = prepared() if again else (gradients, loss, hyper)
            given, grads, total = (given, grads, total) if kept is None else kept_only(kept, given, grads, total)
            if self.options.gradient_accumulation_steps:
                run = functools.partial(accumulate.run_window, self.options, given, state.count)
                return run(grads, total, slots, scalars, update, idle)
            if EMPTY in given:
                return either(~given[EMPTY], lambda: update(grads, slots, scalars), lambda: idle(slots, scalars))
            return update(grads, slots, scalars)

        def replaced(slots: list[Slots], scalars: Slots) -> Any:
            (out, count), _, _ = idle(slots, scalars)
            everything = enumerate(zip(out, stored, slots, strict=True))
            pairs = [(before_parameters(x, p, write, i), before(s, i)) for i, (x, p, s) in everything]
            return ([x for x, _ in pairs], before(count)), [s for _, s in pairs], before(scalars)

        restart = lambda slots, scalars, when: (slots, accumulate.restarted(scalars, when))
        plain = functools.partial(proceed, update=functools.partial(update, one_pass=False)) if one_pass else None
        run = guard.Guarded(proceed, idle, replaced, restart, plain, accumulates)
        everything = self.options, hyper, gradients, slots, scalars, state.count
        (out, count), slots, scalars = guard.guarded(*everything, run)
        if not accumulates and (guard.is_on(self.options) or EMPTY in hyper):  # both select results
            out = in_one_kernel(self.core, layout, gradients, out, slots)
        trees = layout.updated(trees, slots)
        moved = State(count, {}, scalars, packed_like(state.slots, trees))
        frozen = layout.frozen_amounts(grads)
        return layout.unflatten(out, layout.frozen_leaves() if write else frozen), moved

    def points(self, params: Any, state: State, grads: Any, hyper: dict[str, Any]) -> tuple[Any, Any]:
        layout, stored = Layout.read(params, self.options, grads)
        own, loss = self._gradients(layout, stored, grads), read_loss(hyper) if self.core.needs_loss else None
        gradients, loss, _ = self._collected(hyper, False, own, loss)
        hyper, slots = self.at(hyper, state.count), layout.by_leaf(unpacked(state.slots))
        everything = Now.at(state.count, hyper, loss), layout, gradients, stored, slots, state.scalars
        found, wanted, _ = second_gradient.points(self.core, self.options, *everything)
        found = [p if x is None else x.astype(p.dtype) for x, p in zip(found, stored, strict=True)]
        return layout.unflatten(found, layout.frozen_leaves()), wanted

    def summed(self, params: Any, grads: Any, hyper: dict[str, Any], reduce: bool = True) -> tuple[Any, Any]:
        if WEIGHT not in hyper and (self.options.axis_name is None or not reduce):
            return grads, hyper
        if isinstance(params, Packed) and not isinstance(grads, Packed):
            grads = params.like(grads)
        layout, stored = Layout.read(params, self.options, grads)
        own = self._gradients(layout, stored, grads)
        total, _, hyper = collected(self.options.axis_name, own, None, hyper, reduce)
        return layout.unflatten(total, layout.frozen_gradients(grads)), hyper

    def averaged(self, params: Any, state: State, hyper: dict[str, Any]) -> Any:
        if self._must_unpack(params):
            return params.like(self.averaged(params.unpack(), state, hyper))
        layout, stored = Layout.read(params, self.options)
        hyper = self.at(hyper, jnp.maximum(state.count - 1, 0))
        slots = layout.by_leaf(unpacked(state.slots))
        everything = [Stored(p, s) for p, s in zip(stored, slots, strict=True)]
        out = [
            x.slots[average.AVERAGE]
            if self.options.use_ema
            else self.core.averaged(leaf, *dequantized(self.options, x), hyper)
            for leaf, x in zip(layout.leaves, everything, strict=True)
        ]
        return layout.unflatten([a.astype(p.dtype) for a, p in zip(out, stored, strict=True)], layout.frozen_leaves())

    def _collected(self, hyper: dict[str, Any], reduce: bool, gradients: list[Any], loss: Any) -> Any:
        """Return gradients and the loss summed over devices and unscaled, and the run-time values after the sum."""
        gradients, loss, hyper = collected(self.options.axis_name, gradients, loss, hyper, reduce)
        if "loss_scale_factor" in hyper:
            gradients, loss = unscaled((gradients, loss), hyper["loss_scale_factor"])
        return gradients, loss, hyper

    def _check_second(self, reduce: bool) -> None:
        """Raise a ValueError if the second gradients would not be summed over devices as the first ones are."""
        if self.options.axis_name is not None and not reduce:
            raise ValueError(
                f"A second gradient is summed over axis_name={self.options.axis_name!r} with the first one. Received: "
                "gradients that a guard of several groups, a loss scale or the caller has summed before. Sum both in "
                "the loss function (`jax.lax.pmean`), and leave `axis_name` out."
            )

    def _must_unpack(self, params: Any) -> bool:
        return isinstance(params, Packed) and why_unpack(self.core, self.options, params) is not None

    def _check_names(self, trees: dict[str, Any], slots: list[Slots], scalars: Slots, hyper: dict[str, Any]) -> None:
        """Raise a ValueError if the state does not have the slots and scalars of this program."""
        kept, present = self._slot_names([]), {name for each in slots for name in each}
        check_names("slots", [name for name in trees if name in kept or name in present], kept)
        known = [*self.core.scalar_names(hyper), *guard.init(self.options)]
        check_names("scalars", scalars, known + accumulate.scalar_names(self.options, self.core.needs_loss))

    def _gradients(self, layout: Layout, stored: list[Any], grads: Any) -> list[Any]:
        """Return the gradients of `layout`'s parameters in the dtype of the arithmetic."""
        # Sums over calls or devices make sparse gradients dense.
        summed = self.options.gradient_accumulation_steps or self.options.axis_name is not None
        as_rows = self.options.sparse == "lazy" or (self.core.takes_rows and not summed)
        return self._read(layout, stored, layout.flatten(grads, "grads"), as_rows)

    def _read(self, layout: Layout, stored: list[Any], grads: list[Any], as_rows: Any = False) -> list[Any]:
        return [read_gradient(*x, as_rows=as_rows) for x in zip(grads, stored, layout.leaves, strict=True)]
