"""What will run: the parameters in groups of the same rule and the same storage, as a table with reasons."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxopt_keras.engine import slot_storage
from jaxopt_keras.engine.core import Layout
from jaxopt_keras.engine.cores.leafwise import Leafwise, route
from jaxopt_keras.engine.native import reasons, unavailable
from jaxopt_keras.language.numerics import compute_dtype
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Slot
from jaxopt_keras.packing.trees import Packed, unpacked
from jaxopt_keras.storage.blockwise import Blocks


def nbytes(tree: Any) -> int:
    """The bytes of all arrays in a pytree; `jax.ShapeDtypeStruct`s count as the arrays that they describe.

    >>> import jax.numpy as jnp
    >>> nbytes({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2, jnp.bfloat16)})
    28
    """
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Kind(NamedTuple):
    """What the parameters of a group have in common."""

    rule: str
    grain: str
    dtype: str
    slots: tuple[str, ...]  # "momentum int8"
    engine: str  # "native", "xla", or "xla (why)"


@dataclass
class Group:
    """Parameters of one kind."""

    kind: Kind
    paths: list[str]
    elements: int = 0
    bytes: int = 0  # of their state


@dataclass(frozen=True)
class Plan:
    """How an optimizer will run over a tree of parameters. It prints as a table."""

    groups: list[Group]
    scalars: int  # bytes of what is kept once
    notes: tuple[str, ...] = ()  # on packing: what is done, or advised, and why

    @property
    def elements(self) -> int:
        return sum(group.elements for group in self.groups)

    @property
    def bytes(self) -> int:
        """Of the whole state."""
        return sum(group.bytes for group in self.groups) + self.scalars

    def __str__(self) -> str:
        rows = [("arrays", "elements", "state", "per element", "rule", "parameters", "engine", "slots")]
        for group in self.groups:
            kind = group.kind
            each = f"{group.bytes / max(group.elements, 1):.3f}"
            rule = f"{kind.rule} ({kind.grain})"
            slots = ", ".join(kind.slots) or "none"
            rows.append(
                (
                    str(len(group.paths)),
                    f"{group.elements:,}",
                    readable_size(group.bytes),
                    each,
                    rule,
                    kind.dtype,
                    kind.engine,
                    slots,
                )
            )
        each = f"{self.bytes / max(self.elements, 1):.3f}"
        arrays = str(sum(len(group.paths) for group in self.groups))
        rows.append(
            (
                arrays,
                f"{self.elements:,}",
                readable_size(self.bytes),
                each,
                "in all",
                "",
                "",
                f"{self.scalars} B kept once",
            )
        )
        widths = [max(len(row[i]) for row in rows) for i in range(7)]
        table = ["  ".join([*map(align, row, widths), row[7]]).rstrip() for row in rows]
        return "\n".join([*table, *self.notes])


def plan(program: Any, params: Any) -> Plan:
    """The plan of a `pipeline.Program` for `params`, arrays or `jax.ShapeDtypeStruct`s; nothing is computed."""
    state = jax.eval_shape(program.init, params, program.hyper())
    notes = packing_notes(program, params)
    if isinstance(params, Packed) and program.why_unpack(params):
        params = jax.eval_shape(Packed.unpack, params)
    layout, stored = Layout.read(params, program.options)
    groups: dict[Kind, Group] = {}
    everything = zip(
        layout.leaves,
        stored,
        layout.by_leaf(jax.eval_shape(unpacked, state.slots)),
        engines(program, params, state),
        strict=True,
    )
    for leaf, p, slots, engine in everything:
        rule, grain, kinds = type(program.core).__name__, "tree", {}
        if isinstance(program.core, Leafwise):
            own = route(program.core.rule, leaf.path, p)
            rule, grain, kinds = type(own).__name__, own.grain, own.slots()
        names = tuple(f"{name} {format_of(program, name, x, kinds.get(name), p)}" for name, x in slots.items())
        group = groups.setdefault(kind := Kind(rule, grain, str(p.dtype), names, engine), Group(kind, []))
        group.paths.append(leaf.path)
        group.elements += p.size
        group.bytes += nbytes(slots)
    return Plan(list(groups.values()), nbytes((state.count, state.scalars)), notes)


# Where handing arrays over costs more than the arithmetic: more arrays than this, of fewer elements each on average.
MANY, SMALL = 100, 4096


def packing_notes(program: Any, params: Any) -> tuple[str, ...]:
    """Whether arrays are packed, or should be, and why."""
    if isinstance(params, Packed):
        what = f"packed: {len(params.parts)} arrays in {', '.join(params.buffers)}"
        why = program.why_unpack(params)
        return (f"{what}, cut out inside the step, since {why}" if why else f"{what}, as they are",)
    arrays = jax.tree.leaves(params)
    mean = sum(x.size for x in arrays) / max(len(arrays), 1)
    if len(arrays) <= MANY or mean >= SMALL or not program.core.elementwise:
        return ()
    return (
        f"{len(arrays)} arrays of {mean:.0f} elements each: `jaxopt_keras.pack` makes them one buffer for each dtype, "
        "which saves 5 to 8 microseconds an array in each step; `flat_state=True` makes one of their slots within a "
        "`jit` of yours, which saves half of that (measured on a CPU)",
    )


def engines(program: Any, params: Any, state: Any) -> list[str]:
    """What runs the step of each parameter: "native", "xla", or "xla (why not native)"."""
    leaves = jax.tree.leaves(params)
    if program.options.engine == "xla":
        return ["xla"] * len(leaves)
    against = unavailable() if jax.default_backend() == "cpu" else f"on {jax.default_backend()}"
    if against:
        return [f"xla ({against})"] * len(leaves)
    why = reasons(program.bare_step, params, state, params, program.hyper())[: len(leaves)]
    sharded = [len(getattr(getattr(p, "sharding", None), "device_set", ())) > 1 for p in leaves]
    why = ["on several devices" if many else reason for reason, many in zip(why, sharded, strict=True)]
    return [f"xla ({reason})" if reason else "native" for reason in why]


def frozen_plan(params: Any) -> Plan:
    """The plan of parameters that do not move."""
    layout, leaves = Layout.read(params, Options())
    groups: dict[Kind, Group] = {}
    for leaf, p in zip(layout.leaves, leaves, strict=True):
        group = groups.setdefault(kind := Kind("frozen", "none", str(p.dtype), (), "none"), Group(kind, []))
        group.paths.append(leaf.path)
        group.elements += p.size
    return Plan(list(groups.values()), 0)


def format_of(program: Any, name: str, x: Any, kind: Slot | None, p: Any) -> str:
    """How a slot is kept, and why not as it was asked for."""
    if isinstance(x, Blocks):
        return f"{x.code.name} in blocks"
    reason = ""
    if kind is not None and program.options.state_dtype is not None:
        fresh = jax.ShapeDtypeStruct(x.shape, compute_dtype(p.dtype))
        reason = slot_storage.choose_format(program.options, name, fresh, kind).reason
    return f"{x.dtype}" + (f" ({reason})" if reason else "")


def readable_size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def align(text: str, width: int) -> str:
    return text.rjust(width) if text[:1].isdigit() else text.ljust(width)
