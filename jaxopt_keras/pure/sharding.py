"""Training on many devices: partition specs of a state, ZeRO-1, and a report of a compiled step."""

import functools
import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxopt_keras.engine.compiled import shardings_of
from jaxopt_keras.engine.plan import align, readable_size
from jaxopt_keras.engine.programs.offloaded import outermost
from jaxopt_keras.engine.programs.zero1 import Zero1
from jaxopt_keras.engine.state import State
from jaxopt_keras.language.paths import leaves_by_path
from jaxopt_keras.language.places import platform_of
from jaxopt_keras.pure.arguments import check_kernel
from jaxopt_keras.pure.building import refuse_flat
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.storage.tiles import stored_bytes


def specs(kernel: Kernel, params: Any, param_specs: Any, mesh: Any = None) -> State:
    """The partition specs of a kernel's state. A slot is sharded like its parameter, along the axes that it keeps.

    Args:
        kernel: any kernel.
        params: arrays, or `jax.ShapeDtypeStruct`s.
        param_specs: a pytree like `params`, or a prefix of one, of `PartitionSpec`s or `NamedSharding`s.
        mesh: the mesh, for the sizes of its axes: an axis of an array that they do not divide is not split. May be None
            (default) with `NamedSharding`s, or if all sizes divide.

    Returns:
        A state with a `PartitionSpec` for each array.

    Raises:
        ValueError: for a kernel with `flat_state=True`.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> spec = specs(jk.adafactor(), {"w": jnp.zeros((8, 4))}, {"w": PartitionSpec("data", None)})
    >>> spec.slots["row"]["w"], spec.slots["column"]["w"]
    (P('data',), P(None,))
    """
    refuse_flat(kernel.program, "specs")
    is_spec = lambda x: isinstance(x, (PartitionSpec, NamedSharding))
    given = jax.tree.broadcast(param_specs, params, is_leaf=is_spec)
    found = [s.mesh for s in jax.tree.leaves(given, is_leaf=is_spec) if isinstance(s, NamedSharding)]
    plain = jax.tree.map(lambda s: s.spec if isinstance(s, NamedSharding) else s, given, is_leaf=is_spec)
    if mesh is None and not found:
        names = {a for s in jax.tree.leaves(plain, is_leaf=is_spec) for part in s for a in _axes(part)}
        mesh = AbstractMesh((1,) * len(names), tuple(sorted(names)))
    mesh = found[0] if mesh is None else mesh
    # With explicit axes the sharding is a part of the type, so that type inference computes the specs.
    typed = AbstractMesh(tuple(mesh.shape.values()), mesh.axis_names, axis_types=(AxisType.Explicit,) * len(mesh.shape))

    def struct(p: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        parts = [part if _divides(mesh, part, n) else None for part, n in zip(spec, p.shape, strict=False)]
        return jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=NamedSharding(typed, PartitionSpec(*parts)))

    hyper, hyperparams = kernel.hyper(), kernel.init(jax.eval_shape(lambda p: p, params)).hyperparams
    with jax.sharding.use_abstract_mesh(typed):
        state = jax.eval_shape(kernel.program.init, jax.tree.map(struct, params, plain), hyper)
    state = state._replace(hyperparams=hyperparams)
    return jax.tree.map(lambda x: getattr(x.sharding, "spec", PartitionSpec()), state)


def _axes(part: Any) -> tuple[str, ...]:
    return (part,) if isinstance(part, str) else tuple(part or ())


def _divides(mesh: Any, part: Any, n: int) -> bool:
    return n % math.prod(mesh.shape[a] for a in _axes(part)) == 0


def zero1(kernel: Kernel, mesh: Mesh, axis: str = "data", param_specs: Any = None) -> Kernel:
    """`kernel` with its state split over an axis of `mesh`; the parameters keep their sharding (ZeRO-1).

    Each device stores and updates its share of the state. An array is split along its first axis that the mesh axis
    divides. If there is none, it is replicated, which `report` shows. Results equal those of `kernel` up to rounding.

    Args:
        kernel: any kernel.
        mesh: of automatic or explicit axes.
        axis: the axis of `mesh` over which batches are split. Default: "data".
        param_specs: a tree of `PartitionSpec`s, for parameters that are split over other axes. Default: None, they are
            replicated.

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    >>> kernel = zero1(jk.adamw(1e-3), mesh)
    >>> params = jax.device_put({"w": jnp.zeros((16, 4))}, NamedSharding(mesh, PartitionSpec()))
    >>> state = kernel.init(params)
    >>> state.slots["momentum"]["w"].sharding.shard_shape((16, 4))
    (2, 4)

    Raises:
        TypeError: if `kernel` is no kernel. ValueError: if the mesh has no such axis, or for `flat_state=True`.
    """
    check_kernel("kernel", kernel)
    refuse_flat(kernel.program, "zero1")
    if axis not in mesh.axis_names:
        raise ValueError(f"`axis` must be an axis of the mesh, which has {mesh.axis_names}. Received: axis={axis!r}")
    places = tuple(leaves_by_path(param_specs, is_leaf=lambda x: isinstance(x, PartitionSpec)))
    return Kernel(outermost(kernel.program, lambda inner: Zero1(inner, mesh, axis, places)))


class Collective(NamedTuple):
    """One exchange between devices in a compiled program."""

    kind: str  # such as "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
    bytes: int  # of its result, on one device
    source: str  # the operation of the traced program that caused it
    in_loop: bool  # whether it runs in every iteration of a loop


class Share(NamedTuple):
    """The bytes of one argument of the program, or of its result."""

    name: str
    bytes: int  # of the global arrays
    per_device: int


@dataclass(frozen=True)
class Report:
    """The memory of a compiled function on each device, and its collectives. It prints as a table."""

    shares: list[Share]
    collectives: list[Collective]
    devices: int
    temporary: int  # bytes per device, without arguments and results

    def count(self, kind: str) -> int:
        """The number of collectives of a kind."""
        return sum(c.kind == kind for c in self.collectives)

    def __str__(self) -> str:
        rows = [("", "bytes", "per device", "of it")]
        for share in self.shares:
            part = f"{share.per_device / max(share.bytes, 1):.1%}"
            rows.append((share.name, readable_size(share.bytes), readable_size(share.per_device), part))
        rows.append(("temporary", "", readable_size(self.temporary), ""))
        lines = [f"{self.devices} devices", *_table(rows)]
        if not self.collectives:
            return "\n".join([*lines, "no collectives"])
        head = ("collective", "bytes", "in a loop", "from")
        body = [(c.kind, readable_size(c.bytes), "yes" if c.in_loop else "no", c.source) for c in self.collectives]
        return "\n".join([*lines, *_table([head, *body])])


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(map(align, row, widths)).rstrip() for row in rows]


def report(fn: Any, *args: Any, donate: tuple[int, ...] = ()) -> Report:
    """Compiles `fn` for `args`, without running it, and reports its memory on each device and its collectives.

    Shows for example a state that is not split, or a collective in a loop.

    Args:
        fn: a function of arrays, jitted or not: `kernel.step`, or a whole train step.
        *args: its arguments, of arrays or of `jax.ShapeDtypeStruct`s with shardings.
        donate: the indices of donated arguments, if `fn` is not jitted. Default: ().

    >>> import jax, jax.numpy as jnp, jaxopt_keras as jk
    >>> mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    >>> params = jax.device_put({"w": jnp.zeros((64, 64))}, NamedSharding(mesh, PartitionSpec("data")))
    >>> kernel = jk.adamw(1e-3, global_clipnorm=1.0)
    >>> print(report(kernel.step, params, kernel.init(params), params, donate=(0, 1)))  # doctest: +ELLIPSIS
    8 devices
    ...
    params ... 12.5%
    ...
    """
    is_step = getattr(fn, "__func__", None) is Kernel.step and len(args) > 1
    placed = shardings_of(args[:2]) if is_step else None  # a step places its results as its arguments are
    jit = functools.partial(jax.jit, fn, donate_argnums=donate)
    jitted = fn if hasattr(fn, "lower") else jit(out_shardings=placed[1].unflatten(placed[0])) if placed else jit()
    compiled = jitted.lower(*args).compile()
    shardings, _ = compiled.input_shardings
    shares = [_share(name, arg, own) for name, arg, own in zip(_names(fn, args), args, shardings, strict=True)]
    out = jax.eval_shape(jitted, *args)
    shares.append(_share("result", out, compiled.output_shardings))
    everything = [s for s in jax.tree.leaves(shardings) if s is not None]
    memory = compiled.memory_analysis()
    return Report(
        shares,
        collectives(str(compiled.as_text())),
        max((len(s.device_set) for s in everything), default=1),
        int(getattr(memory, "temp_size_in_bytes", 0)),
    )


def _names(fn: Any, args: tuple[Any, ...]) -> list[str]:
    code = getattr(getattr(fn, "__func__", getattr(fn, "__wrapped__", fn)), "__code__", None)
    names = [n for n in (code.co_varnames[: code.co_argcount] if code else ()) if n != "self"]
    return [*names, *(f"argument {i}" for i in range(len(names), len(args)))][: len(args)]


def _share(name: str, tree: Any, shardings: Any) -> Share:
    leaves, placed = jax.tree.leaves(tree), jax.tree.leaves(shardings)
    if len(placed) != len(leaves):  # unused arguments have no sharding
        placed = [getattr(x, "sharding", None) for x in leaves]
    whole = part = 0
    for x, sharding in zip(leaves, placed, strict=True):
        where = platform_of(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding))
        shard = x.shape if sharding is None else sharding.shard_shape(tuple(x.shape))
        whole += stored_bytes(x.shape, x.dtype, where)
        part += stored_bytes(shard, x.dtype, where)
    return Share(name, whole, part)


_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"
_INSTRUCTION = re.compile(rf"^\s*(?:ROOT )?\S+ = (?P<type>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|branch_computations|true_computation|false_computation)=\{?([^},]*)"
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d*\w*)\[(?P<shape>[\d,]*)\]")
_BITS = {"pred": 8, "s4": 4, "u4": 4}


def collectives(text: str) -> list[Collective]:
    """The collectives in the text of a compiled program, in order."""
    found: list[tuple[str, Collective]] = []
    calls: dict[str, set[str]] = {}
    loops: set[str] = set()
    inside = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            inside = head["name"]
        called = {name.strip().lstrip("%") for group in _CALLED.findall(line) for name in group.split(",")}
        calls.setdefault(inside, set()).update(called)
        if " while(" in line:
            loops |= called
        if one := _INSTRUCTION.match(line):
            source = re.search(r'op_name="([^"]*)"', line)
            bits = [
                _BITS.get(m["dtype"]) or int(re.sub(r"\D", "", m["dtype"].split("e")[0]) or 32)
                for m in _ARRAY.finditer(one["type"])
            ]
            sizes = [math.prod(int(n) for n in m["shape"].split(",") if n) for m in _ARRAY.finditer(one["type"])]
            total = sum(b * n for b, n in zip(bits, sizes, strict=True)) // 8
            found.append((inside, Collective(one["kind"], total, source[1] if source else "", False)))
    while more := {name for loop in loops for name in calls.get(loop, ())} - loops:
        loops |= more
    return [c._replace(in_loop=where in loops) for where, c in found]
