"""The native engine around its loops: where it runs, where XLA runs instead, and what it loads."""

import ast
import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.native import Unavailable, build, unavailable
from jaxopt_keras.engine.native.fusion import Fusion
from jaxopt_keras.engine.native.ir import trace_of
from jaxopt_keras.engine.native.phase import Phase
from jaxopt_keras.language.numerics import ema
from jaxopt_keras.language.rule import Decay, Rate, Rule, Signed

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

PARAMS = {"w": jnp.arange(24.0).reshape(4, 6) / 7, "b": jnp.ones(3)}
GRADS = {"w": jnp.cos(jnp.arange(24.0)).reshape(4, 6), "b": jnp.full(3, 0.1)}
NATIVE, XLA = (jk.adamw(0.1, global_clipnorm=1.0, engine=engine) for engine in ("auto", "xla"))


def loops(function, *args):
    """How many calls of compiled loops a function makes."""
    return jax.jit(function).lower(*args).compile().as_text().count('custom_call_target="jaxopt_keras_')


def one_step(kernel, params, grads):
    return kernel.step(params, kernel.init(params), grads, donate=False)


def assert_near(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


def test_a_step_is_native_and_in_place():
    state = NATIVE.init(PARAMS)
    lowered = NATIVE.compiled.step_donating.lower(PARAMS, state, GRADS, NATIVE.hyper())
    text = lowered.compile().as_text()
    assert text.count('custom_call_target="jaxopt_keras_') == 2  # the norm of both arrays, then the step of both
    assert not re.search(r"f32\[[^]].* copy\(", text)
    assert_near(one_step(NATIVE, PARAMS, GRADS), one_step(XLA, PARAMS, GRADS))


BLOCKS = jnp.cos(jnp.arange(64.0 * 96)).reshape(64, 96)
INT8 = jk.sgd(0.1, momentum=0.9, state_dtype="int8")


def test_a_gpu_finds_scales_in_a_pass_of_their_own():
    state = INT8.init(BLOCKS)
    for platform, barriers in {"cuda": 2, "cpu": 0}.items():
        traced = jax.jit(INT8.program.step).trace(BLOCKS, state, BLOCKS, INT8.hyper())
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.optimization_barrier") == barriers, platform


def test_two_passes_have_the_numbers_of_one(monkeypatch):
    params, state = one_step(INT8, BLOCKS, jnp.sin(BLOCKS))

    # Operation by operation, hence to the bit.
    one = INT8.program.step(params, state, BLOCKS, INT8.hyper())
    monkeypatch.setattr(Phase, "reference", Phase.in_two_passes)
    jax.tree.map(np.testing.assert_array_equal, one, INT8.program.step(params, state, BLOCKS, INT8.hyper()))


def test_what_is_not_donated_stays():
    before = jax.tree.map(np.array, PARAMS)
    one_step(NATIVE, PARAMS, GRADS)
    jax.tree.map(np.testing.assert_array_equal, before, PARAMS)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp", "scan", "cond", "while"])
def test_inside_transformations(transform):
    def run(kernel):
        step = lambda p, g: one_step(kernel, p, g)[0]
        loss = lambda g: jnp.sum(step(PARAMS, g)["w"] ** 2)
        if transform == "vmap":
            return jax.vmap(step, (None, 0))(PARAMS, jax.tree.map(lambda g: jnp.stack([g, -g, 2 * g]), GRADS))
        if transform == "grad":
            return jax.grad(loss)(GRADS)
        if transform == "jvp":
            return jax.jvp(loss, (GRADS,), (GRADS,))
        if transform == "scan":
            return jax.lax.scan(lambda p, _: (step(p, GRADS), None), PARAMS, None, 3)[0]
        if transform == "cond":
            return jax.jit(lambda x: jax.lax.cond(x > 0, lambda: step(PARAMS, GRADS), lambda: PARAMS))(1.0)
        return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1], GRADS)), (0, PARAMS))[1]

    assert_near(run(NATIVE), run(XLA))


def test_a_cond_of_the_optimizer_itself():
    kernel = jk.adam(0.1, gradient_accumulation_steps=2, use_ema=True)
    state = kernel.init(PARAMS)
    assert loops(kernel.program.bare_step, PARAMS, state, GRADS, kernel.hyper()) == 0  # the plain program has none
    assert loops(lambda *x: kernel.compiled.step(*x), PARAMS, state, GRADS, kernel.hyper()) >= 2


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_several_devices_nothing_is_gathered(kind):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    params, grads = (jax.device_put({"w": x["w"]}, NamedSharding(mesh, PartitionSpec("x"))) for x in (PARAMS, GRADS))
    kernel = jk.adamw(0.1, global_clipnorm=1.0)
    with jax.set_mesh(mesh):
        state = kernel.init(params)
        found, _ = kernel.step(params, state, grads, donate=False)
        moving = state
        text = kernel.compiled.step.lower(params, moving, grads, kernel.hyper()).compile().as_text()
    assert "all-gather" not in text and "jaxopt_keras_" not in text
    assert found["w"].sharding.is_equivalent_to(params["w"].sharding, 2)
    assert_near(found, one_step(kernel, {"w": PARAMS["w"]}, {"w": GRADS["w"]})[0])
    assert all(group.kind.engine == "xla (on several devices)" for group in kernel.describe(params).groups)


def test_each_group_of_a_partition_has_its_own_engine():
    xla, mixed = (
        jk.partition({"b": jk.sgd(0.1, engine=engine)}, default=jk.adamw(0.1, engine="xla"))
        for engine in ("xla", "auto")
    )
    for kernel, count in ((xla, 0), (mixed, 1)):
        state = kernel.init(PARAMS)
        assert loops(kernel.compiled.step, PARAMS, state, GRADS, kernel.hyper()) == count
        assert_near(kernel.step(PARAMS, state, GRADS, donate=False)[0], one_step(xla, PARAMS, GRADS)[0])
    strict = jk.partition({"b": jk.sgd(0.1)}, default=jk.adafactor(0.1, engine="native"))
    with pytest.raises(Unavailable, match="has no loop for this"):
        one_step(strict, {"w": jnp.ones((256, 256)), "b": jnp.ones(3)}, {"w": jnp.ones((256, 256)), "b": jnp.ones(3)})


def test_inside_shard_map_each_device_runs_its_own():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    kernel, params, grads = jk.adamw(0.1), {"w": PARAMS["w"]}, {"w": GRADS["w"]}
    spec = PartitionSpec("x")
    function = lambda p, g: one_step(kernel, p, g)[0]
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
    assert loops(mapped, params, grads) == 1
    assert_near(jax.jit(mapped)(params, grads), function(params, grads))


def test_an_export_is_portable():
    exported = export.export(jax.jit(lambda p, g: one_step(NATIVE, p, g)[0]))(PARAMS, GRADS)
    assert "custom_call @jaxopt_keras" not in exported.mlir_module()
    assert_near(exported.call(PARAMS, GRADS), one_step(XLA, PARAMS, GRADS)[0])


def test_a_rule_of_ten_lines():
    class Signum(Rule):
        learning_rate: Rate = 1e-3
        beta: Decay = 0.9

        class State(NamedTuple):
            momentum: Signed

        def init(self, p):
            return self.State(jnp.zeros_like(p))

        def update(self, g, p, s, at):
            m = ema(s.momentum, g, self.beta)
            return -at.lr * jnp.sign(m), self.State(m)

    kernel = jk.Kernel(Signum(0.5), jk.Options(engine="native"))
    assert [group.kind.engine for group in kernel.describe(PARAMS).groups] == ["native"]
    params, _ = one_step(kernel, PARAMS, GRADS)
    np.testing.assert_array_equal(params["w"], PARAMS["w"] - 0.5 * jnp.sign(GRADS["w"]))


FOR_XLA = {
    "a sum of products": lambda g, p: jnp.vdot(g, p) * g,
    "an array from nothing": lambda g, p: g + jax.lax.broadcasted_iota(jnp.float32, p.shape, p.ndim - 1),
}


@pytest.mark.parametrize("direction", FOR_XLA)
def test_what_has_no_loop_is_left_to_xla(direction):
    class Directed(Rule):
        learning_rate: Rate = 0.1

        def update(self, g, p, s, at):
            return -at.lr * FOR_XLA[direction](g, p), s

    kernels = (jk.Kernel(Directed(), jk.Options(engine=engine)) for engine in ("auto", "xla"))
    assert_near(*(one_step(kernel, PARAMS, GRADS)[0] for kernel in kernels))


REDUCING = {
    "a sum over the last axis": lambda g: jnp.sum(g, -1, keepdims=True),
    "the last axis summed twice": lambda g: jnp.sum(jnp.sum(g, -1, keepdims=True), -1, keepdims=True),
    "a sum of sums": lambda g: jnp.sum(jnp.sqrt(jnp.sum(g, -1))),
    "a sum of repeated sums": lambda g: jnp.sum(jnp.broadcast_to(jnp.sum(g, -1, keepdims=True), g.shape)),
    "a sum of ones": lambda g: jnp.sum(jnp.ones_like(g), -1, keepdims=True),
    "the greatest of maxima": lambda g: jnp.max(jnp.max(jnp.abs(g), -1)),
}


EXTENTS = [(5, 1), (3, 4), (2, 3, 1), (2, 1, 4), (1, 6), (7,)]


@pytest.mark.parametrize("reduced", REDUCING)
def test_reductions_of_every_extent(reduced):
    """Also over axes of length 1, which leave every element, and of values that are one for each block already."""

    class Reducing(Rule):
        learning_rate: Rate = 0.1
        grain: ClassVar = "leaf"

        def update(self, g, p, s, at):
            return -at.lr * g / REDUCING[reduced](g * g), s

    params = {
        f"{shape}": jnp.asarray(np.cos(np.arange(np.prod(shape))), jnp.float32).reshape(shape) for shape in EXTENTS
    }
    kernels = (jk.Kernel(Reducing(), jk.Options(engine=engine)) for engine in ("auto", "xla"))
    assert_near(*(one_step(kernel, params, params)[0] for kernel in kernels))


def test_constants_do_not_narrow_numbers(x64):
    class Least(jk.Rule):
        def update(self, g, p, s, at):
            return jnp.minimum(jnp.inf, g) + jnp.maximum(-jnp.inf, g), s

    third = jnp.full(9, 1 / 3)
    kernel = jk.Kernel(Least(), jk.Options(engine="native"))
    moved, _ = kernel.step(jnp.zeros(9), kernel.init(jnp.zeros(9)), third)
    np.testing.assert_array_equal(moved, 2 * third)


def test_long_rows_do_not_wait_on_the_stack():
    class OfRows(Rule):
        learning_rate: Rate = 0.1
        grain: ClassVar = "leaf"

        def update(self, g, p, s, at):
            both = g * p
            return -at.lr * both / jnp.sum(both, -1, keepdims=True), s

    plan = jk.Kernel(OfRows()).describe({f"{n}": jax.ShapeDtypeStruct((2, n), jnp.float32) for n in (4096, 10**7)})
    engines = {path: group.kind.engine for group in plan.groups for path in group.paths}
    assert engines == {"4096": "native", "10000000": "xla (blocks too long to keep)"}


def test_native_says_what_it_cannot():
    kernel = jk.adafactor(engine="native")
    with pytest.raises(Unavailable, match='`engine="native"` has no loop for this: .*Use `engine="auto"`'):
        one_step(kernel, {"w": jnp.ones((256, 256))}, {"w": jnp.ones((256, 256))})
    kernel = jk.adam(engine="native")
    with pytest.raises(Unavailable, match="it is exported"):
        export.export(jax.jit(lambda p, g: one_step(kernel, p, g)[0]))(PARAMS, GRADS)


# --- what is compiled, kept and loaded ------------------------------------------------------------------------------

PROGRAM = """
import jax, jax.numpy as jnp, jaxopt_keras as jk
kernel = jk.adam(0.5, **%s)
params = {"w": jnp.ones((3, 50))}
print([g.kind.engine for g in kernel.describe(params).groups])
params, state = kernel.step(params, kernel.init(params), {"w": jnp.ones((3, 50))})
print(float(params["w"].sum()))
"""


def start(cache, options="{}", **environment):
    environment = {"JAXOPT_KERAS_CACHE": str(cache), "JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-W", "error", "-c", PROGRAM % options]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process):
    out, error = process.communicate(timeout=120)
    return out.split("\n")[:2], error, process.returncode


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("JAXOPT_KERAS_CACHE", str(path))
    return path


def compile_once(cache: pathlib.Path):
    """Compiles a loop, or takes it from the cache; its file."""
    key, _ = build.library(build.PROBE)
    return cache / f"{key}.so"


def test_processes_may_compile_at_once(tmp_path):
    running = [start(tmp_path / "cache") for _ in range(3)]
    for process in running:
        out, error, code = finished(process)
        assert code == 0 and out[0] == "['native']" and float(out[1]) == pytest.approx(75, abs=0.01), error
    names = sorted(x.suffix for x in (tmp_path / "cache").iterdir())
    assert names == [".sha256"] * 2 + [".so"] * 2  # the probe and one loop, and nothing left lying about


WITHOUT = {  # compilers, and what `describe` says of them
    "no-such-compiler": "no C compiler: there is no `no-such-compiler`",
    "false": "`false` fails: it does not say why",
    "cc --no-such-flag": "`cc --no-such-flag` fails: .*error: unrecognized .*option.*--no-such-flag",
    "true": "the compiler cannot run: .*No such file.*loop.so",
}


@pytest.mark.parametrize("compiler", WITHOUT)
def test_without_loops_xla_runs_and_says_why(tmp_path, compiler):
    why = re.compile(WITHOUT[compiler])
    out, error, code = finished(start(tmp_path / "cache", CC=compiler, JAXOPT_KERAS_FALLBACK="warn"))
    assert code == 0 and float(out[1]) == pytest.approx(75, abs=0.01), error
    assert len(ast.literal_eval(out[0])) == 1 and re.match(rf"xla \({why.pattern}", ast.literal_eval(out[0])[0]), out
    assert error.count("XLA runs what") == 1 and why.search(error), error  # once, for one description and two programs


@pytest.mark.parametrize("options,fallback", [("{}", "error"), ("{'engine': 'native'}", "warn"), ("{}", "eror")])
def test_who_wants_no_fallback_gets_an_error(tmp_path, options, fallback):
    out, error, code = finished(start(tmp_path / "cache", options, CC="false", JAXOPT_KERAS_FALLBACK=fallback))
    expected = '`JAXOPT_KERAS_FALLBACK` must be "warn" or "error". Received: \'eror\''
    assert code == 1 and (expected if fallback == "eror" else "`false` fails") in error


def test_who_asks_for_xla_needs_no_compiler(tmp_path):
    out, error, code = finished(
        start(tmp_path / "cache", "{'engine': 'xla'}", CC="false")
    )  # and a fallback is an error
    assert code == 0 and out[0] == "['xla']" and not error


@pytest.mark.parametrize("how", ["error", "warn"])
def test_a_fault_in_our_own_header_is_seen(cache, tmp_path, monkeypatch, caplog, how):
    """As one was on JAX 0.11: its header had the new name of a type under the old version."""
    for name in ("runtime.h", "ffi.h"):
        text = build.RUNTIME.with_name(name).read_text()
        (tmp_path / name).write_text(text.replace("__typeof__(f->extension_start->next)", "XLA_FFI_Old_Name*"))
    monkeypatch.setattr(build, "RUNTIME", tmp_path / "runtime.h")
    monkeypatch.setenv("CC", f"{os.environ.get('CC', 'cc')} -DPLANTED")  # not the compiler that was tried before
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", how)
    if how == "error":
        with pytest.raises(Unavailable, match="XLA_FFI_Old_Name"):
            NATIVE.describe(PARAMS)
        return
    (reason,) = {group.kind.engine for group in NATIVE.describe(PARAMS).groups}
    assert re.fullmatch(r"xla \(`.* -DPLANTED` fails: .*ffi.h:\d+:\d+: error: .*XLA_FFI_Old_Name.*\)", reason)
    assert "XLA_FFI_Old_Name" in caplog.text


def test_a_loop_that_does_not_compile_is_seen(monkeypatch):
    def failing(source):
        raise Unavailable("this very loop")

    monkeypatch.setattr(build, "target", failing)
    with pytest.raises(Unavailable, match="this very loop"):
        jax.jit(lambda p: one_step(NATIVE, p, p)).lower({"w": jnp.ones(5)})


@pytest.mark.parametrize("harm", ["cut", "foreign", "no digest", "open to others", "a link"])
def test_a_library_that_is_not_what_was_compiled_is_not_loaded(cache, tmp_path, harm):
    path = compile_once(cache)
    whole, digest = path.read_bytes(), path.with_suffix(".sha256")
    path.rename(tmp_path / "loaded.so")  # this process goes on with it: the harm is done to a copy
    shutil.copy(tmp_path / "loaded.so", path)
    assert build.load(path) is not None
    if harm == "cut":
        path.write_bytes(whole[:1000])
    elif harm == "foreign":
        path.write_bytes(b"not a library")
        digest.write_text("0" * 64)
    elif harm == "no digest":
        digest.unlink()
    elif harm == "open to others":
        path.chmod(0o777)
    else:
        path.unlink()
        path.symlink_to(tmp_path / "loaded.so")
    assert build.load(path) is None
    compile_once(cache)
    assert build.load(path) is not None and not path.is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_open_to_others_is_not_used(cache, mode):
    cache.mkdir()
    cache.chmod(mode)
    build.library(build.PROBE)
    assert not [*cache.iterdir()]


def test_a_folder_from_which_nothing_can_be_loaded_is_not_used(cache, monkeypatch):
    def load(path, whole=ctypes.CDLL):  # as on a file system that is mounted `noexec`
        if pathlib.Path(path).parent == cache:
            raise OSError("failed to map segment from shared object")
        return whole(path)

    monkeypatch.setattr(ctypes, "CDLL", load)
    _, loaded = build.library(build.PROBE)
    assert loaded.handler and pathlib.Path(loaded._name).parent != cache


def test_a_folder_for_one_process_is_not_that_of_one_forked_from_it(cache):
    program = """
import os, sys
from jaxopt_keras.engine.native import build
mine = build.folder()
process = os.fork()
if not process:
    sys.exit(build.folder() == mine)
assert os.waitpid(process, 0)[1] == 0
assert build.folder() == mine and mine.exists()
print(mine)
"""
    cache.touch()  # a file: there can be no such folder
    mine = subprocess.check_output([sys.executable, "-c", program], text=True).strip()
    assert not pathlib.Path(mine).exists()


def test_a_fresh_folder_is_the_users_alone(cache):
    compile_once(cache)
    assert cache.stat().st_mode & 0o777 == 0o700


def test_arrays_of_one_shape_are_leaves_of_one_loop():
    """Not arrays of one large loop, although their stochastic rounding needs the same places of elements."""
    params = {"a": BLOCKS, "b": BLOCKS}
    state = INT8.init(params)
    trace, _ = trace_of(INT8.program.bare_step, params, state, params, INT8.hyper())
    assert sum(not region.reason for region in Fusion(trace).regions) == 2


def test_what_tells_arrays_apart_is_one_array():
    """XLA compiles what there is for each array by itself, 30 ms each: nothing is."""

    def fusions(count):
        params = {str(i): BLOCKS for i in range(count)}
        state = kernel.init(params)
        args = params, state, params, kernel.hyper()
        return kernel.compiled.step.lower(*args).compile().as_text().count("fusion(")

    kernel = jk.adam(0.1, state_dtype="int8")

    assert fusions(2) == fusions(20)


@pytest.mark.parametrize("ordered", [False, True])
def test_effects_run_beside_the_loops(ordered, capfd):
    """`jax.debug.print` in an update has no result, and runs in each step."""

    class Printing(jk.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(learning_rate * gradient)
            jax.debug.print("sum {x} {y}", x=jnp.sum(gradient), y=variable.value[0], ordered=ordered)

    w = jk.Variable(jnp.zeros(5000))
    optimizer = Printing(0.5)
    for _ in range(2):
        optimizer.apply([jnp.ones(5000)], [w])
    jax.effects_barrier()
    assert capfd.readouterr().out.splitlines() == ["sum 5000.0 -0.5", "sum 5000.0 -1.0"]
    assert np.all(w.numpy() == -1)
