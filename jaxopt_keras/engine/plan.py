"""The plan of a step: the parameters, grouped by rule, storage and engine, as a table with reasons."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxopt_keras.engine import one_pass, slot_storage
from jaxopt_keras.engine.compiled import init_at
from jaxopt_keras.engine.core import Layout, Leaf, Now, Slots
from jaxopt_keras.engine.cores.leafwise import Leafwise
from jaxopt_keras.engine.native import reasons, unavailable
from jaxopt_keras.engine.second import placeholders
from jaxopt_keras.engine.slot_packing import why_unpack
from jaxopt_keras.language.hyperparameters import schedules_of
from jaxopt_keras.language.matrix_rule import MatrixRule
from jaxopt_keras.language.modifier import innermost, routed
from jaxopt_keras.language.modifier import title as title_of
from jaxopt_keras.language.numerics import compute_dtype, is_inexact
from jaxopt_keras.language.places import Place, Places, platform_of
from jaxopt_keras.language.rule import RATE, Slot
from jaxopt_keras.packing.trees import Packed, unpacked
from jaxopt_keras.storage.blockwise import Blocks, foreign_blocks
from jaxopt_keras.storage.tiles import stored_bytes

SHOWN = 3  # paths of a group in the table


def nbytes(tree: Any) -> int:
    """Return the bytes of all arrays in a pytree; a `jax.ShapeDtypeStruct` counts as the array that it describes.

    An array on a TPU consists of whole tiles of 8 x 128 elements: there one of (64, 64) takes as much as (64, 128).

    >>> import jax.numpy as jnp
    >>> nbytes({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)})
    28

    Raises:
        TypeError: for a leaf that is not an array.
    """
    leaves = [getattr(x, "value", x) for x in jax.tree.leaves(tree)]  # of variables
    if others := [x for x in leaves if not (hasattr(x, "shape") and hasattr(x, "dtype"))]:
        raise TypeError(
            f"`nbytes` takes a pytree of arrays. Received: {type(others[0]).__name__}. Of an optimizer pass its "
            "`state`."
        )
    return sum(stored_bytes(x.shape, x.dtype, platform_of(x)) for x in leaves)


class Kind(NamedTuple):
    """The common properties of a group of parameters."""

    rule: str
    grain: str  # also how the rule sees the array, if not as it is: "matrix, 4 of 64 x 64"
    dtype: str
    slots: tuple[str, ...]  # "momentum int8"
    engine: str  # "native", "xla", or "xla (why)"
    rate: str = "none"  # the learning rate: a number, or the name of a schedule
    decay: str = "none"  # the weight decay: a number, or "excluded"


@dataclass
class Group:
    """The parameters of one kind."""

    kind: Kind
    paths: list[str]
    elements: int = 0
    bytes: int = 0  # of the group's state


@dataclass(frozen=True)
class Plan:
    """The plan of an optimizer for a tree of parameters: what `describe` returns. It prints as a table.

    Attributes:
        groups: the parameters of one rule, dtype, rate, decay, format and engine: `kind`, `paths`, `elements`, `bytes`.
            The table has the first paths of each, `groups[i].paths` all of them.
        scalars: bytes of the count and of the numbers that are kept once.
        notes: on rules of matrices and their fallbacks, on patterns that match nothing, and on packing: whether, and
            why.
    """

    groups: list[Group]
    scalars: int
    notes: tuple[str, ...] = ()

    def in_group(self, name: str) -> "Plan":
        """Return the plan of a part of the parameters: its name, if it has one, precedes the rule."""
        rule = lambda group: f"{name}: {group.kind.rule}" if name else group.kind.rule
        groups = [replace(group, kind=group.kind._replace(rule=rule(group))) for group in self.groups]
        return replace(self, groups=groups)

    def noted(self, notes: Iterable[Any]) -> "Plan":
        """Return the plan with more notes."""
        return replace(self, notes=(*self.notes, *map(str, notes)))

    @property
    def elements(self) -> int:
        return sum(group.elements for group in self.groups)

    @property
    def bytes(self) -> int:
        """The bytes of the whole state."""
        return sum(group.bytes for group in self.groups) + self.scalars

    def __str__(self) -> str:
        rows = [
            ("arrays", "elements", "state", "per element", "rule", "dtype", "rate", "decay", "engine", "slots", "paths")
        ]
        for group in self.groups:
            kind, slots = group.kind, ", ".join(group.kind.slots) or "none"
            cells = _cells(len(group.paths), group.elements, group.bytes)
            rule = f"{kind.rule} ({kind.grain})"
            rows.append((*cells, rule, kind.dtype, kind.rate, kind.decay, kind.engine, slots, _first(group.paths)))
        count = sum(len(group.paths) for group in self.groups)
        once = f"{self.scalars} B kept once"
        rows.append((*_cells(count, self.elements, self.bytes), "in all", "", "", "", "", once, ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        table = ["  ".join([*map(align, row[:-1], widths), row[-1]]).rstrip() for row in rows]
        return "\n".join([*table, *self.notes])


def joined(parts: Iterable[Plan]) -> Plan:
    """Return the plans of several groups as one."""
    parts = [*parts]
    groups, notes = ([x for part in parts for x in getattr(part, name)] for name in ("groups", "notes"))
    return Plan(groups, sum(part.scalars for part in parts), tuple(notes))


def _first(paths: list[str]) -> str:
    """Format the first paths of a group."""
    more = len(paths) - SHOWN
    return ", ".join([*paths[:SHOWN], *([f"and {more} more"] if more > 0 else [])])


def _cells(count: int, elements: int, nbytes: int) -> tuple[str, str, str, str]:
    """Format the first cells of a row."""
    return str(count), f"{elements:,}", readable_size(nbytes), f"{nbytes / max(elements, 1):.3f}"


def plan(program: Any, params: Any, state: Any = None) -> Plan:
    """Return the plan of a `pipeline.Program` for `params`, arrays or `jax.ShapeDtypeStruct`s; computes no array.

    Args:
        state: the state, for a program whose slots are made elsewhere; None: that of `init`.
    """
    places = Places.of(params)
    with places.traced():
        if state is None:
            state = jax.eval_shape(functools.partial(init_at, program, places), params, program.hyper())
        return _plan(program, params, state, places)


def _plan(program: Any, params: Any, state: Any, places: Places) -> Plan:
    notes = packing_notes(program, params)
    if isinstance(params, Packed) and why_unpack(program.core, program.options, params):
        params = jax.eval_shape(Packed.unpack, params)
    (layout, stored), slots = Layout.read(params, program.options), _by_leaf(program, params, state)
    entries, rate, others = [], rate_of(program), dict[str, list[str]]()
    engines, conds = engines_of(program, params, state)
    for leaf, p, own, engine in zip(layout.leaves, stored, slots, engines, strict=True):
        title, grain, kinds = program.core.title, "tree", {}
        if isinstance(program.core, Leafwise):
            rule = routed(program.core.rule, leaf.path, p)
            grain = ", ".join(text for text in (rule.grain, innermost(rule).about(p)) if text)
            title, kinds = title_of(rule), rule.kinds(p)
            if type(innermost(rule)) is not type(innermost(program.core.rule)):
                others.setdefault(title, []).append(leaf.path)
        place = Place(places.platform, dict(places.shards).get(leaf.path) or p.shape)
        formats = tuple(f"{name} {format_of(program, name, x, kinds.get(name), p, place)}" for name, x in own.items())
        kind = Kind(title, grain, str(p.dtype), formats, engine, rate, decay_of(program, leaf, p))
        entries.append((kind, leaf.path, p.size, nbytes(own)))
    entries += [frozen_entry(path, p) for path, p in layout.frozen.values()]
    return Plan(grouped(entries), nbytes((state.count, state.scalars)), (*rule_notes(program, others), *conds, *notes))


def rule_notes(program: Any, others: dict[str, list[str]]) -> list[str]:
    """Say how matrices are computed, and which parameters each fallback updates."""
    if not isinstance(program.core, Leafwise):
        return []
    rule = innermost(program.core.rule)
    left = [f"{name}, instead of {type(rule).__name__}, updates {', '.join(paths)}" for name, paths in others.items()]
    return [note for note in (rule.note() if isinstance(rule, MatrixRule) else "", *left) if note]


def rate_of(program: Any) -> str:
    """Return the learning rate of a `pipeline.Program`, as text."""
    return _number(program.core.schedules().get(RATE, program.hyper().get(RATE)))


def decay_of(program: Any, leaf: Leaf, p: Any) -> str:
    """Return the weight decay of a parameter, as text; "excluded" for one that would decay if it were not excluded."""
    hyper = program.at(program.hyper(), jnp.zeros((), jnp.int32))
    decay = hyper.get("weight_decay")
    if isinstance(program.core, Leafwise):  # a fallback rule may have a decay of its own
        own = program.core.decoupled(leaf, p, Now(jnp.ones(()), hyper.get(RATE), decay, hyper))
        scheduled = schedules_of(program.options).get("weight_decay", decay)
        decay = scheduled if own is None or own is decay else own
    return _number(decay) if leaf.decays or decay is None else "excluded"


def _number(x: Any) -> str:
    if callable(x):  # a schedule
        return getattr(x, "__name__", type(x).__name__)
    return "none" if x is None else "traced" if isinstance(x, Tracer) else f"{float(x):.4g}"


def frozen_entry(path: str, p: Any) -> tuple[Kind, str, int, int]:
    """Return the entry of a parameter that is not updated."""
    return Kind("frozen", "none", str(p.dtype), (), "none"), path, p.size, 0


def grouped(entries: Iterable[tuple[Kind, str, int, int]]) -> list[Group]:
    """Group parameters by kind; an entry is a parameter's kind, path, number of elements, and bytes of state."""
    groups: dict[Kind, Group] = {}
    for kind, path, elements, size in entries:
        group = groups.setdefault(kind, Group(kind, []))
        group.paths.append(path)
        group.elements += elements
        group.bytes += size
    return [*groups.values()]


# Dispatch costs more than arithmetic with more arrays than this, of fewer elements each on average.
MANY, SMALL = 100, 4096


def packing_notes(program: Any, params: Any) -> tuple[str, ...]:
    """Say whether arrays are packed, or should be, and why."""
    if isinstance(params, Packed):
        what = f"packed: {len(params.parts)} arrays in {', '.join(params.buffers)}"
        why = why_unpack(program.core, program.options, params)
        return (f"{what}, unpacked inside the step, since {why}" if why else f"{what}, updated as buffers",)
    arrays = jax.tree.leaves(params)
    mean = sum(x.size for x in arrays) / max(len(arrays), 1)
    if len(arrays) <= MANY or mean >= SMALL or not program.core.elementwise:
        return ()
    return (
        f"{len(arrays)} arrays of {mean:.0f} elements each: `jaxopt_keras.pack` packs them into one buffer for each "
        "dtype, which saves 5 to 8 microseconds an array in each step; `flat_state=True` packs only their slots, for "
        "steps inside your own `jit`, which saves half of that (measured on a CPU)",
    )


def engines_of(program: Any, params: Any, state: Any) -> tuple[list[str], list[str]]:
    """Return the engine of each parameter that is not frozen: "native", "xla", or "xla (why not native)".

    Also notes on each `cond` of a step with the native engine.
    """
    every = jax.tree.leaves(params)
    leaves = [p for p in every if is_inexact(p)]
    if program.options.engine == "xla":
        return ["xla"] * len(leaves), []
    if program.options.engine == "pallas":
        return _with_kernels(program, params, state), []
    where = Places.of(params).platform
    if obstacle := unavailable() if where == jax.default_backend() else f"on {where}":
        return [f"xla ({obstacle})"] * len(leaves), []
    hyper = program.offered(program.hyper(), placeholders())
    why, conds = reasons(program.bare_step, params, state, params, hyper)
    why = [reason for reason, p in zip(why[: len(every)], every, strict=True) if is_inexact(p)]
    sharded = [len(getattr(getattr(p, "sharding", None), "device_set", ())) > 1 for p in leaves]
    why = ["on several devices" if many else reason for reason, many in zip(why, sharded, strict=True)]
    foreign = [
        [text for x in s.values() if (text := foreign_blocks(x, where))] for s in _by_leaf(program, params, state)
    ]
    why = [next(iter(texts), reason) if reason else "" for reason, texts in zip(why, foreign, strict=True)]
    conds = ["on several devices"] * len(conds) if any(sharded) else conds
    return [f"xla ({reason})" if reason else "native" for reason in why], cond_notes(conds)


def cond_notes(reasons: Iterable[str]) -> list[str]:
    """Say of each `cond` of a step why it is a branch; "": it is none."""
    how = [f"a branch ({reason})" if reason else "a predicate inside the kernels, no branch" for reason in reasons]
    return [f"`cond` (a guard, accumulation, or the rule's own): {x}" for x in dict.fromkeys(how)]


def _with_kernels(program: Any, params: Any, state: Any) -> list[str]:
    """Return "pallas" for each parameter that has a kernel, else "xla", and why."""
    stored, slots = Layout.read(params, program.options)[1], _by_leaf(program, params, state)
    found = [one_pass.grid_of(program.options, p, p, s) for p, s in zip(stored, slots, strict=True)]
    if not program.core.elementwise or program.core.joint:
        found = ["a rule of whole arrays"] * len(found)
    split = [len(getattr(getattr(p, "sharding", None), "device_set", ())) > 1 for p in stored]
    kernels = ["pallas (on several devices inside `shard_map` only)" if many else "pallas" for many in split]
    return [f"xla ({x})" if isinstance(x, str) else kernel for x, kernel in zip(found, kernels, strict=True)]


def _by_leaf(program: Any, params: Any, state: Any) -> list[Slots]:
    """Return the slots of each parameter, as shapes and dtypes."""
    return Layout.read(params, program.options)[0].by_leaf(jax.eval_shape(unpacked, state.slots))


def format_of(program: Any, name: str, x: Any, kind: Slot | None, p: Any, place: Place) -> str:
    """Describe the format of a slot, with the reason if it differs from the requested one."""
    if isinstance(x, Blocks):
        return f"{x.code.name} in blocks" + (f" of {x.tiles}" if x.tiles else "")
    reason = ""
    if kind is not None and program.options.state_dtype is not None:
        fresh = jax.ShapeDtypeStruct(x.shape, compute_dtype(p.dtype))
        reason = slot_storage.choose_format(program.options, name, fresh, kind, place).reason
    return f"{x.dtype}" + (f" ({reason})" if reason else "")


def readable_size(count: float) -> str:
    """Format a number of bytes: "1.5 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def align(text: str, width: int) -> str:
    """Align a cell of a table: numbers to the right, words to the left."""
    return text.rjust(width) if text[:1].isdigit() else text.ljust(width)
