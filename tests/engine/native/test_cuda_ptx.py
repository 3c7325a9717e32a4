"""Kernels before a GPU runs them: their PTX by NVRTC, their call in a program, the probe. No GPU is needed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_keras as jk
from benchmarks.registers import MISSING, assembled, assembler
from jaxopt_keras.engine.native import Unavailable, backends, native
from jaxopt_keras.engine.native.cuda import nvrtc, probe, ptx
from jaxopt_keras.engine.native.cuda.launch import InCuda
from tests.engine.native.cuda_grid import Grid


def missing():
    try:
        nvrtc.library()
    except Unavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
assembles = pytest.mark.skipif(assembler() is None, reason=MISSING)
PARAMS = {"w": jax.ShapeDtypeStruct((1024, 768), jnp.float32), "b": jax.ShapeDtypeStruct((768,), jnp.float32)}
HALVES = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), PARAMS)
BLOCKS = {"state_dtype": "int8"}


@pytest.fixture
def described(monkeypatch):
    """Programs for an H100 that is not here. Returns the PTX of each launch."""
    launcher, texts = ptx.Ptx(), []
    launcher.described = "9.0"
    monkeypatch.setitem(backends.BACKENDS, "cuda", InCuda(launcher))
    call = ptx.call
    monkeypatch.setattr(ptx, "call", lambda text, *rest: (texts.append(text), call(text, *rest))[1])
    return texts


def lowered(kernel, params=PARAMS, function=None):
    """The program of a step for a GPU."""
    state = jax.eval_shape(kernel.program.init, params, kernel.hyper())
    step = jax.jit(native(function or kernel.program.bare_step), donate_argnums=(0, 1))
    return step.trace(params, state, params, kernel.hyper()).lower(lowering_platforms=("cuda",)).as_text()


STEPS = {  # the launches, and the most registers of each
    "AdamW": (jk.adamw(), PARAMS, [64]),
    "a power": (jk.ftrl(learning_rate_power=-0.7), PARAMS, [72]),
    "int8": (jk.adamw(**BLOCKS), PARAMS, [96]),
    "int4": (jk.adamw(state_dtype="int4"), PARAMS, [96]),
    "float8": (jk.adamw(state_dtype="float8"), PARAMS, [96]),
    "bfloat16": (jk.adamw(**BLOCKS, master_weights="bf16+8"), HALVES, [96]),
    "a guard": (jk.adamw(skip_nonfinite=True), PARAMS, [64, 64]),
    "accumulation": (jk.adamw(gradient_accumulation_steps=2), PARAMS, [64, 64]),
    "norms": (jk.lamb(global_clipnorm=1.0, **BLOCKS), PARAMS, [96, 128, 128]),
}


@assembles
@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_launch_for_each_phase(name, described):
    kernel, params, registers = STEPS[name]
    text = lowered(kernel, params)
    assert text.count(f'custom_call @"{ptx.TARGET}"') + text.count(f"@{ptx.TARGET}") == len(registers)
    assert len(described) == len(registers)
    for each, most in zip(described, registers, strict=True):
        found = assembled(each, "9.0")
        assert found.local == 0 and found.registers <= most, found


@assembles
@pytest.mark.parametrize("capability", ["8.0", "10.0"])
def test_other_gpus(capability, described):
    backends.BACKENDS["cuda"].launcher.described = capability
    lowered(jk.lamb(global_clipnorm=1.0, **BLOCKS))
    for each in described:
        assert assembled(each, capability).local == 0


def test_arrays_are_written_in_place(described):
    text = lowered(jk.adamw())
    assert text.count("output_operand_alias<") == 7  # parameters, two slots of each, and the count
    table = re.search(r"\.u32 TABLE\[\d+\] = \{([\d, ]*)\};", described[0])[1].split(", ")
    assert table[0] == "2" and {"786432", "768"} < {*table}  # two arrays, and their elements
    # Seven operands and results of each array, seven numbers (those of a decay are two), the count and the new one.
    parameters = described[0].count(".param .u64 jk_step_param_")
    assert parameters == 2 * 7 + 7 + 2 == len({*re.findall(r"\.u64 \w+_\d+", described[0])})


@pytest.mark.parametrize("options", [{}, BLOCKS], ids=str)
def test_a_model_compiles_nothing_new(options, described, monkeypatch):
    """Whether its arrays are in packed buffers or not. Only a single array of a kind has scalars of another form."""
    two = {f"{name}{i}": x for name, x in PARAMS.items() for i in range(2)}
    lowered(jk.lamb(**options), two)
    monkeypatch.setattr(nvrtc, "_compiled", None)
    large = {f"{i}": jax.ShapeDtypeStruct((i + 2, 4096), jnp.float32) for i in range(5)}
    large |= {name: x for name, x in two.items() if len(x.shape) == 1}
    for model, is_packed in [(two, True), (large, False), (large, True)]:
        lowered(jk.lamb(flat_state=is_packed, **options), model)
    assert len(described) == 8


def test_xla_runs_what_a_call_cannot(described):
    kernel, mesh = jk.adamw(), jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("x")))
    assert ptx.TARGET not in lowered(kernel, {"w": sharded})
    state = jax.eval_shape(kernel.program.init, PARAMS, kernel.hyper())
    arguments = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (PARAMS, state, PARAMS))
    exported = export.export(jax.jit(native(kernel.program.bare_step)), platforms=["cuda"])(*arguments, kernel.hyper())
    assert ptx.TARGET not in exported.mlir_module()
    batched = jax.jit(jax.vmap(native(kernel.program.bare_step), (0, None, None, None)))
    many = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), PARAMS)
    text = batched.trace(many, *arguments[1:], kernel.hyper()).lower(lowering_platforms=("cuda",)).as_text()
    assert ptx.TARGET not in text and not described


def test_without_a_gpu_or_nvrtc_a_sentence_says_so(monkeypatch, described):
    assert ptx.Ptx().unavailable() == "there is no GPU of NVIDIA"
    assert ptx.TARGET not in lowered_for_gpus_here()
    nvrtc.library.cache_clear()
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", refuse)
    with pytest.raises(Unavailable, match="there is no NVRTC: `pip install nvidia-cuda-nvrtc`"):
        nvrtc.library()
    monkeypatch.undo()
    nvrtc.library.cache_clear()


def lowered_for_gpus_here():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.BACKENDS, "cuda", InCuda(ptx.Ptx()))
        return lowered(jk.adamw())


def refuse(*_):
    raise OSError("no such file")


def test_what_does_not_compile_is_left_to_xla(described, monkeypatch):
    monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
    monkeypatch.setitem(nvrtc.HEADERS, "device.h", "#error broken")
    assert ptx.TARGET not in lowered(jk.rmsprop()) and not described


def test_the_cache_holds_what_nvrtc_made_and_no_other_file(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXOPT_KERAS_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(nvrtc, "_compiled", lambda *_: made.append(1) or b".version 9.0")
    for _ in range(2):
        nvrtc.compiled.cache_clear()
        assert nvrtc.compiled(probe.READS, "compute_90") == ".version 9.0"
    (file,) = tmp_path.glob("*.ptx")
    file.write_text("evil")
    nvrtc.compiled.cache_clear()
    assert nvrtc.compiled(probe.READS, "compute_90") == ".version 9.0" and len(made) == 2
    file.chmod(0o777)
    nvrtc.compiled.cache_clear()
    nvrtc.compiled(probe.READS, "compute_90")
    assert len(made) == 3
    nvrtc.compiled.cache_clear()


def test_ptx_is_that_of_the_driver():
    versions = [ptx.newest_ptx(x) for x in (12010, 12040, 12090, 13000, 13020)]
    assert versions == ["8.1", "8.4", "8.8", "9.0", "9.2"]
    text = nvrtc.compiled(probe.READS, "compute_90")
    made = probe.Kernel(probe.Layout(()), np.array([4, 0, 1, 2, 3], np.uint32), (), 4, 1)
    assert ".version 8.4" in ptx.fitted(text, made, "table", 12040)
    assert ptx.fitted(text, made, "table", 99000).startswith(text[:100])
    with pytest.raises(Unavailable, match="writes another PTX"):
        ptx.fitted("", made, "table", None)


# --- the probe ------------------------------------------------------------------------------------------------------


def test_the_probe_is_a_step_of_the_whole_engine(monkeypatch):
    grid = Grid()
    monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(grid))
    assert probe.steps(jax.devices("cpu")[0]) and grid.launched == 2
    for fault in (
        ("c = from + threadIdx.x % 32;", "c = from + 1 + threadIdx.x % 32;"),
        ("all_have_read = has_arrived_last(&readers);", "all_have_read = true;"),
    ):
        monkeypatch.setitem(backends.BACKENDS, "cpu", InCuda(Grid(changes=(fault,))))
        assert not probe.steps(jax.devices("cpu")[0]), fault


FINDINGS = {  # what the two trials say in each form -> the form
    "both right": ([True], [True], "table"),
    "parameters cannot be read by number": ([False], [True], "switch"),
    "a step is wrong in the first form": ([True], [False, True], "switch"),
    "a step is wrong in every form": ([True], [False, False], "a kernel gives wrong results"),
    "an error of the driver": ([RuntimeError("no image")], [RuntimeError("again")], "no image"),
}


@pytest.mark.parametrize("finding", FINDINGS)
def test_without_a_right_result_xla_runs(finding, monkeypatch):
    reads, steps, expected = FINDINGS[finding]

    def trial(results):
        answers = iter(results)

        def run(_):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return run

    monkeypatch.setattr(ptx, "gpu", lambda: None)
    monkeypatch.setattr(probe, "reads_parameters", trial(reads))
    monkeypatch.setattr(probe, "steps", trial(steps))
    probe.form.cache_clear()
    try:
        if expected in ("table", "switch"):
            assert probe.form() == expected
        else:
            monkeypatch.setenv("JAXOPT_KERAS_FALLBACK", "warn")
            ptx._probed.cache_clear()
            assert expected in ptx.Ptx().unavailable()
    finally:
        probe.form.cache_clear()
        ptx._probed.cache_clear()
