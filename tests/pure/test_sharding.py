"""Many devices: state is sharded like its parameter, zero1 and offload change no number, and the report is right."""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.language.places import Places
from jaxopt_keras.optimizers import FUNCTIONS
from jaxopt_keras.pure import sharding
from tests.laws.cases import draw, rounding, slots_at

P = PartitionSpec
SHAPES = {"kernel": (16, 8), "bias": (8,), "odd": (3,)}
PARAMS, GRADS = draw(SHAPES, 0), [draw(SHAPES, i) for i in (1, 2)]
SPECS = {"kernel": P("data", None), "bias": P("data"), "odd": P()}
MORE = {
    "clip": lambda: jk.adamw(0.01, global_clipnorm=0.5),
    "everything": lambda: jk.adam(
        0.01, use_ema=True, gradient_accumulation_steps=2, skip_nonfinite=True, skip_spikes=100.0, weight_decay=0.1
    ),
    "partition": lambda: jk.partition({"bias": jk.sgd(0.1, momentum=0.9)}, default=jk.adam(0.1)),
    "loss scale": lambda: jk.loss_scaled(jk.adam(0.1), 1.0),
}
KERNELS = {name: lambda f=f: f(0.01) for name, f in FUNCTIONS.items()} | MORE
every_kernel = pytest.mark.parametrize("name", KERNELS)
# Of each kind of rule one: moments, a scalar, the parameter's other places, norms, lacking axes, whole matrices.
KINDS = ["adam", "nadam", "schedule_free_adamw", "lamb", "adafactor", "sm3", "muon", *MORE]
WITHOUT_ROWS = {"column", "accumulator_1"}  # slots that lack the axis that is split


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def placed(tree, m, specs=SPECS):
    return jax.device_put(tree, jax.tree.map(lambda s: NamedSharding(m, s), specs, is_leaf=lambda x: isinstance(x, P)))


def trained(kernel, params, grads):
    state = jax.jit(kernel.init)(params)
    step = jax.jit(kernel.step)
    for g in grads:
        params, state = step(params, state, g)
    return params, state


@functools.cache
def on_one_device(name):
    return trained(KERNELS[name](), PARAMS, GRADS)


def where(tree):
    return jax.tree.map(lambda x: x.sharding.shard_shape(x.shape), tree)


def amplified(kernel):
    """How much a rule may enlarge rounding errors: eigenvectors and iterations do, other rules do not."""
    return 10 if getattr(getattr(kernel.program, "core", None), "rule", jk.adam().rule).grain == "matrix" else 1


def close(a, b, times=1):
    """Within 2e-6, or the rounding of two steps where numbers are large."""
    atol = lambda y: times * max(2e-6, rounding(y.dtype, 2) * float(np.max(np.abs(y), initial=0)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol(y)), a, b)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", KINDS)
def test_state_lies_where_its_parameter_does(name, kind):
    kernel, m = KERNELS[name](), mesh(kind)
    with jax.set_mesh(m):
        params, grads = placed(PARAMS, m), [placed(g, m) for g in GRADS]
        before = where(jax.jit(kernel.init)(params).slots)
        after, state = trained(kernel, params, grads)
    for slot, x in slots_at(state, "kernel").items():
        if slot not in WITHOUT_ROWS:
            assert np.prod(before[slot]["kernel"]) * 8 == x.size, slot
    assert where(state.slots) == before and where(after) == where(params)
    expected, reference = on_one_device(name)
    close((after, state.slots), (expected, reference.slots))


@every_kernel
def test_zero1_changes_no_number(name):
    kernel, m = KERNELS[name](), mesh()
    zero = sharding.zero1(kernel, m)
    params, grads = placed(PARAMS, m, P()), [placed(g, m, P()) for g in GRADS]
    after, state = trained(zero, params, grads)
    expected, reference = on_one_device(name)
    close(after, expected, amplified(kernel))
    bases = {slot for slot in state.slots if slot.endswith("basis")}  # eigenvectors, of which the signs are free
    ours, theirs = ({slot: x for slot, x in s.slots.items() if slot not in bases} for s in (state, reference))
    close(ours, theirs, amplified(kernel))
    for path, x in jax.tree_util.tree_leaves_with_path(state.slots):
        whole = "odd" in str(path) or x.size == 1
        assert np.prod(x.sharding.shard_shape(x.shape)) * (1 if whole else 8) == x.size, path
    assert all(x.is_fully_replicated for x in jax.tree.leaves(after))


def test_zero1_with_explicit_axes():
    kernel, m = jk.adamw(0.01), mesh(AxisType.Explicit)
    zero = sharding.zero1(kernel, m)
    with jax.set_mesh(m):
        after, state = trained(zero, placed(PARAMS, m, P()), [placed(g, m, P()) for g in GRADS])
    close(after, trained(kernel, PARAMS, GRADS)[0])
    assert where(slots_at(state, "kernel")) == {"momentum": (2, 8), "velocity": (2, 8)}


def test_zero1_of_blocks():
    kernel, m = jk.adamw(0.01, state_dtype="int8"), mesh()
    params = {"a": jnp.ones((64, 256)), "b": jnp.ones(16 * 256), "c": jnp.ones((3, 4096))}
    state = sharding.zero1(kernel, m).init(placed(params, m, P()))
    shapes = {n: where((x.codes, x.scales)) for n, x in state.slots["momentum"].items()}
    assert shapes == {"a": ((8, 256), (8, 1)), "b": ((512,), (2,)), "c": ((3, 512), (3, 2))}


@pytest.mark.parametrize("rate", [0.1, lambda step: 0.1], ids=["number", "schedule"])
def test_specs_of_injected_hyperparameters(rate):
    params = {"w": jnp.zeros((8, 4))}
    kernel = jk.adam(rate, inject_hyperparams=True)
    found = sharding.specs(kernel, params, {"w": P("data", None)})
    assert jax.tree.structure(found) == jax.tree.structure(kernel.init(params))
    assert set(jax.tree.leaves(found.hyperparams)) == {P()}


def test_specs():
    wide = {"k": jax.ShapeDtypeStruct((256, 512), jnp.float32), "v": jax.ShapeDtypeStruct((300,), jnp.float32)}
    spec = {"k": P("data", "model"), "v": P("data")}
    m = jax.sharding.AbstractMesh((8, 2), ("data", "model"))
    state = sharding.specs(jk.adafactor(), wide, spec, m)
    assert slots_at(state, "k") == {"row": P("data"), "column": P("model")}
    assert slots_at(state, "v") == {"velocity": P(None)}  # 8 does not divide 300
    state = sharding.specs(
        jk.adafactor(variant="optax", min_dim_size_to_factor=1), wide | {"t": wide["k"]}, spec | {"t": P("model")}, m
    )
    (axis,) = [n for n, s in slots_at(state, "t").items() if s == P("model")]
    assert slots_at(state, "t") == dict.fromkeys(("row", "column"), P(None)) | {axis: P("model")}
    state = sharding.specs(jk.muon(use_ema=True), wide, spec, m)
    assert slots_at(state, "k") == {"momentum": P("data", "model"), "average": P("data", "model")}
    int8 = sharding.specs(jk.lion(state_dtype="int8"), wide, {"k": P("data", None), "v": P()}, m).slots["momentum"]["k"]
    assert int8.codes == int8.scales == P("data", None)
    int8 = sharding.specs(jk.lion(state_dtype="int8"), wide, {"k": P(None, "data"), "v": P()}, m).slots["momentum"]["k"]
    assert int8.codes == int8.scales == P(None, "data") and int8.tiles == (-1, 64)  # blocks follow the shards
    with pytest.raises(ValueError, match="straddle"):
        wide["k"] = jax.ShapeDtypeStruct((256, 8 * 257), jnp.float32)
        sharding.specs(jk.lion(state_dtype="int8"), wide, {"k": P(None, "data"), "v": P()}, m)


@functools.cache
def sixteen_matrices():
    """Parameters, gradients, and what Muon makes of them on one device."""
    shapes = {f"w{i}": (32, 32) for i in range(16)}
    params, grads = draw(shapes, 0), draw(shapes, 1)
    return params, grads, jk.muon(0.1).step(params, jk.muon(0.1).init(params), grads, donate=False)[0]


def two_axes(kind=AxisType.Auto):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


MATRICES = {
    "rows": (mesh, P("data", None)),
    "columns": (mesh, P(None, "data")),
    "copies": (mesh, P()),
    "both": (two_axes, P("model", "data")),
    "one of two axes": (two_axes, P(None, "data")),
    "both on one side": (two_axes, P(("model", "data"), None)),
}


# Of the mesh: the kind of its axes, and whether it is set.
AXES = {
    "": (AxisType.Auto, False),
    "set": (AxisType.Auto, True),
    "explicit": (AxisType.Explicit, False),
    "explicit, set": (AxisType.Explicit, True),
}
EVERYWHERE = [(where, "", "jit") for where in MATRICES] + [("both", axes, "jit") for axes in AXES if axes]
EVERYWHERE += [("rows", axes, call) for axes in AXES for call in ("jit", "no jit")]
EVERYWHERE += [(where, "", "zero1") for where in ("copies", "both", "one of two axes")] + [
    ("both", "explicit", "zero1")
]


@pytest.mark.parametrize("where, axes, call", dict.fromkeys(EVERYWHERE))
def test_muon_works_on_whole_matrices_without_a_word(where, axes, call):
    kernel, (make, spec), (kind, is_set) = jk.muon(0.1), MATRICES[where], AXES[axes]
    m, jit, zero1 = make(kind), call != "no jit", call == "zero1"
    params, grads, expected = sixteen_matrices()
    if zero1:
        spec = P(*(axis if axis == "model" else None for axis in spec))
        kernel = sharding.zero1(kernel, m, param_specs=dict.fromkeys(params, spec))
    with jax.set_mesh(m) if is_set else contextlib.nullcontext():
        params, grads = jax.device_put((params, grads), NamedSharding(m, spec))
        state = (jax.jit(kernel.init) if jit else kernel.init)(params)
        step = jax.jit(kernel.step) if jit else functools.partial(kernel.step, donate=False)
        after, _ = step(params, state, grads)
        report = sharding.report(kernel.step, params, state, grads)
    close(after, expected)
    assert all(x.sharding.is_equivalent_to(NamedSharding(m, spec), 2) for x in after.values())
    # One exchange there and one back for each axis of the mesh; devices with copies share the work.
    assert report.count("all-gather") <= 1 + zero1 and report.count("all-to-all") <= 4
    assert len(report.collectives) == report.count("all-gather") + report.count("all-to-all")
    assert not any(c.in_loop for c in report.collectives)
    assert report.temporary <= 2 * sum(x.nbytes for x in params.values())


@pytest.mark.parametrize("where", MATRICES)
@pytest.mark.parametrize("axes", ["set", "explicit", ""])
def test_muon_on_tpus_needs_a_mesh_that_is_set(where, axes):
    """Or explicit axes: there is no custom partitioning. The platform is only named here."""
    (make, spec), (kind, is_set) = MATRICES[where], AXES[axes]
    kernel, m, (params, grads, expected) = jk.muon(0.1, engine="xla"), make(kind), sixteen_matrices()
    with jax.set_mesh(m) if is_set else contextlib.nullcontext(), Places("tpu").traced():
        params, grads = jax.device_put((params, grads), NamedSharding(m, spec))
        state = jax.jit(kernel.init)(params)
        step = jax.jit(lambda *x: kernel.program.step(*x, kernel.hyper()))
        after, _ = step(params, state, grads)
        found = sharding.collectives(step.lower(params, state, grads).compile().as_text())
    close(after, expected)
    if axes:
        # Without help XLA gathers what is split over two axes: both sides, there and back.
        assert len(found) <= 4 and not any(c.in_loop for c in found), found
        assert where == "both" or sum(c.kind == "all-gather" for c in found) <= 2, found


def test_zero1_gathers_the_matrices_of_a_partition_in_one():
    """And one array of its shape, and another rule's, by themselves."""
    m, shapes = mesh(), {f"w{i}": (16, 16) for i in range(4)} | {"other": (16, 16), "wide": (16, 32)}
    params = placed(draw(shapes, 0), m, P())
    kernel = jk.partition({"other": jk.adam(0.1)}, default=jk.muon(0.1))
    zero = sharding.zero1(kernel, m)
    state = zero.init(params)
    expected, _ = kernel.step(params, kernel.init(params), params, donate=False)
    close(jax.jit(zero.step)(params, state, params)[0], expected)
    # Results of the four, of the wide one and of Adam's; and for iterations of fewer matrices than devices, two more.
    assert sharding.report(zero.step, params, state, params).count("all-gather") <= 3 + 2


# The results of all collectives on a device, in matrices, for so many of them.
SENT = {
    "rows": {1: 1, 3: 2, 12: 4},
    "both": {1: 1.25, 3: 3, 12: 8},
    "one of two axes": {1: 1, 3: 2, 12: 12},
}


@pytest.mark.parametrize("count", [1, 3, 12])
@pytest.mark.parametrize("where", SENT)
def test_each_device_multiplies_its_share_of_the_matrices_only(where, count):
    """Matrices fewer than devices too: the stack is not filled up to the number of devices."""
    n, kernel, (make, spec) = 64, jk.muon(0.1), MATRICES[where]
    m = make()
    plain = draw({f"w{i}": (n, n) for i in range(count)}, 0)
    params = placed(plain, m, spec)
    state = kernel.init(params)
    compiled = jax.jit(kernel.step).lower(params, state, params).compile()
    assert compiled.cost_analysis()["flops"] <= 1.05 * -(-count // 8) * 5 * (3 * 2 * n**3 + 3 * n**2)
    found = sharding.collectives(compiled.as_text())
    assert sum(c.bytes for c in found) <= SENT[where][count] * 4 * n**2
    expected, _ = kernel.step(plain, kernel.init(plain), plain, donate=False)
    close(jax.jit(kernel.step)(params, state, params)[0], expected)


def test_a_matrix_that_the_devices_do_not_divide():
    @jax.jit
    def step(params, state, grads):
        grads = jax.lax.with_sharding_constraint(grads, NamedSharding(mesh(), P("data")))  # blocks of 2, and of 1
        return kernel.step(params, state, grads)

    kernel, params = jk.muon(0.1), draw({"a": (15, 4), "b": (15, 4)}, 0)
    expected, _ = kernel.step(params, kernel.init(params), params, donate=False)
    close(step(*placed((params, kernel.init(params), params), mesh(), P()))[0], expected)


def test_muon_spreads_over_two_axes():
    """With matrices that are fewer than devices, and of two shapes."""
    m = two_axes()
    kernel, params = jk.muon(0.1), draw({"a": (8, 16), "b": (8, 16), "c": (16, 8), "bias": (8,)}, 0)
    expected, _ = kernel.step(params, kernel.init(params), params, donate=False)
    params = placed(params, m, {"a": P("data", "model"), "b": P("data", "model"), "c": P("model"), "bias": P()})
    after, _ = jax.jit(kernel.step)(params, jax.jit(kernel.init)(params), params)
    close(after, expected)
    assert where(after) == where(params)


def big(specs):
    m = mesh()
    params = {f"w{i}": jnp.ones((64, 64)) for i in range(4)} | {"b": jnp.ones(64)}
    return m, placed(params, m, specs)


def test_report_of_zero1():
    m, params = big(P())
    kernel = sharding.zero1(jk.adamw(), m)
    report = sharding.report(kernel.step, params, kernel.init(params), params)
    shares = {share.name: share for share in report.shares}
    assert shares["params"].per_device == shares["params"].bytes
    assert shares["state"].per_device <= shares["state"].bytes * (1 / 8 + 0.02)
    assert report.count("all-gather") and "all-gather" in str(report) and report.devices == 8


def test_report_of_fsdp():
    m, params = big(P("data"))
    plain, clipped = (
        sharding.report(k.step, params, k.init(params), params) for k in (jk.adamw(), jk.adamw(global_clipnorm=1.0))
    )
    assert plain.collectives == [] and "no collectives" in str(plain)
    (one,) = clipped.collectives
    assert one.kind == "all-reduce" and one.bytes == 8 * len(
        params
    )  # the two sums of a norm, of each array, in one exchange
    assert {share.name: share.per_device * 8 // share.bytes for share in plain.shares}["params"] == 1


def test_report_finds_loops():
    m, params = big(P("data"))

    def fn(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + x.sum(), x)

    assert [c.in_loop for c in sharding.report(fn, params["w0"]).collectives] == [True]


@pytest.mark.parametrize("face", ["pure", "stateful"])
def test_offload(face):
    where = {"kernel/momentum|bias": "pinned_host"}
    homes = {
        "momentum": {"kernel": "pinned_host", "bias": "pinned_host"},
        "velocity": {"kernel": "device", "bias": "pinned_host"},
    }
    params = {n: PARAMS[n] for n in ("kernel", "bias")}
    grads = [{n: g[n] for n in params} for g in GRADS]
    if face == "pure":
        kernel, plain = jk.adam(0.1, offload=where, skip_nonfinite=True), jk.adam(0.1, skip_nonfinite=True)
        after, state = trained(kernel, params, grads)
        close(after, trained(plain, params, grads)[0])
        new, state = kernel.step(after, state, grads[0])
    else:
        optimizer = jk.Adam(0.1, offload=where)
        variables = [jk.Variable(x, name=n) for n, x in params.items()]
        for g in grads:
            optimizer.apply([g[v.name] for v in variables], variables)
        close({v.name: v.value for v in variables}, trained(jk.adam(0.1), params, grads)[0])
        optimizer.set_weights(optimizer.get_weights())
        optimizer.apply([grads[0][v.name] for v in variables], variables)
        state = optimizer.state
        assert jk.Adam.from_config(optimizer.get_config()).offload == optimizer.offload
    kinds = {name: {n: x.sharding.memory_kind for n, x in tree.items()} for name, tree in state.slots.items()}
    assert kinds == homes


@pytest.mark.parametrize("name", ["zero1", "loss scale", "partition"])
def test_offload_within(name):
    kernel, m = jk.adam(0.1, offload="pinned_host"), mesh()
    wrap = {
        "zero1": lambda k: sharding.zero1(k, m),
        "loss scale": lambda k: jk.loss_scaled(k, 1.0),
        "partition": lambda k: jk.partition({"^": k}),
    }[name]
    params, grads = placed(PARAMS, m, P()), [placed(g, m, P()) for g in GRADS]
    after, state = trained(wrap(kernel), params, grads)
    close(after, trained(jk.adam(0.1), PARAMS, GRADS)[0])
    assert state.slots["momentum"]["kernel"].sharding.memory_kind == "pinned_host"


def test_what_is_refused():
    with pytest.raises(TypeError, match="must be a kernel"):
        sharding.zero1(jk.Adam(), mesh())
    with pytest.raises(ValueError, match="axis of the mesh"):
        sharding.zero1(jk.adam(), mesh(), "model")
    for bad in ("device", {"kernel": "disk"}):
        with pytest.raises(ValueError, match="pinned_host"):
            jk.adam(offload=bad)
    with pytest.raises(ValueError, match="regular expressions"):
        jk.adam(offload={"(": "pinned_host"})


@pytest.mark.parametrize(("wrap", "where"), [(lambda k: k, SPECS), (jk.loss_scaled, SPECS), (lambda k: k, {})])
def test_packed_slots_of_split_arrays_are_warned_of_once(wrap, where):
    params = placed(PARAMS, mesh(), {name: where.get(name, P()) for name in PARAMS})
    kernel = wrap(jk.adam(0.01, flat_state=True))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        state = kernel.init(params)
        kernel.step(params, state, PARAMS, donate=False)
    said = [str(x.message) for x in found if "flat_state" in str(x.message)]
    assert len(said) == bool(where)
    assert not said or ("2 arrays" in said[0] and "`bias`" in said[0] and found[0].filename == __file__)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_codes_of_few_directions_are_split_along_the_other_axis(platform):
    params = {"w": jax.device_put(draw({"w": (256, 256)}, 0)["w"], NamedSharding(mesh(), P(None, "data")))}
    kernel, where = jk.galore(0.01, state_dtype="int8"), Places.of(params)._replace(platform=platform)
    state = kernel.compiled.init_at(where)(params, kernel.hyper())
    codes = state.slots["momentum"]["w"].codes
    assert codes.shape == (128, 256) and codes.sharding.shard_shape(codes.shape) == (128, 32)
