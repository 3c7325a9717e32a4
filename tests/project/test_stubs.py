"""The generated stubs say what the rules say now, and a type checker reads them so."""

import ast
import inspect
import json
import pathlib
import subprocess
import sys

import pytest

import jaxopt_keras
from docs.generator import stubs
from jaxopt_keras import optimizers
from jaxopt_keras.language.rule import Decay, Rule

ROOT = pathlib.Path(jaxopt_keras.__file__).parent.parent
WRITERS = [(stubs.PATH, stubs.stub), (stubs.KERAS, stubs.keras_stub)]
MOST_LINES = 40 * len(optimizers.RULES)

USER = """
import jaxopt_keras as jk
from jaxopt_keras.interop.keras import Adam

jk.Adam(1e-3, 0.9, 0.999, 1e-7, False, 0.01, clipnorm=1.0, engine="xla", name="mine")
jk.AdamW(1e-3, 0.01, 0.9, use_ema=True, seed=None, flat_state=True)
jk.Muon(1e-3, exclude_layers=["head"], momentum=0.9, gradient_accumulation_steps=2)
jk.sgd(lambda step: 0.1 / (1 + step), nesterov=True, exclude_from_weight_decay=["bias"], constraints={"kernel": abs})
jk.lamb(exclude_from_weight_decay=lambda path, p: p.ndim < 2, offload={"kernel": "pinned_host"}, axis_name=("a", "b"))
Adam(1e-3, beta_2=0.99, variant="optax", skip_nonfinite=True)
jk.lion(state_dtype="int8", master_weights=None)
jk.adam(state_dtype={"momentum": "bfloat16", "velocity": "float32"})
jk.Options(state_dtype="int4")
kernel: jk.Kernel = jk.adam()
optimizer: jk.Optimizer = jk.Adam()

jk.Adam(beta_3=0.9)  # wrong
jk.Adam(clipnrom=1.0)  # wrong
jk.Adam(clipnorm="1")  # wrong
jk.Adam(1e-3, 0.9, beta_1=0.9)  # wrong
jk.AdamW(1e-3, "0.01")  # wrong
jk.Muon(ns_steps=2.5)  # wrong
jk.sgd("fast")  # wrong
jk.sgd(0.1, engine="gpu")  # wrong
jk.sgd(0.1, use_ema="yes")  # wrong
jk.sgd(0.1, variant="torch")  # wrong
jk.rmsprop(options={"clipnorm": 1.0})  # wrong
jk.adam(state_dtype="int9")  # wrong
jk.Adam(state_dtype={"momentum": "int9"})  # wrong
Adam(state_dtype=8)  # wrong
jk.Options(state_dtype="int9")  # wrong
Adam(skip_spikes="often")  # wrong
Adam(slip_spikes=2.0)  # wrong
kernel = jk.Adam()  # wrong
optimizer = jk.adam()  # wrong
"""


@pytest.mark.parametrize("path, stub", WRITERS)
def test_a_stub_is_fresh(path, stub):
    assert path.read_text() == stub(), "run `python -m docs.generator.stubs`"


def defined(stub: str) -> dict[str, ast.arguments]:
    """The arguments of each optimizer of a stub, by its name."""
    found = {}
    for node in ast.parse(stub).body:
        if isinstance(node, ast.ClassDef) and isinstance(node.body[0], ast.FunctionDef):
            found[node.name] = node.body[0].args
            assert found[node.name].args.pop(0).arg == "self"
        elif isinstance(node, ast.FunctionDef) and node.name != "parameters":
            found[node.name] = node.args
    return found


def common_options() -> list[str]:
    tree = ast.parse(stubs.stub())
    (typed,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CommonOptions")
    return [node.target.id for node in typed.body if isinstance(node, ast.AnnAssign)]


@pytest.mark.parametrize("stub", [stubs.stub, stubs.keras_stub])
def test_a_stub_has_the_arguments_that_there_are(stub):
    """Their names, defaults, and the order of those that may be positional."""
    found = defined(stub())
    in_keras = [*optimizers.CLASSES, *optimizers.MORE_CLASSES]
    assert found.keys() == set(optimizers.__all__ if stub is stubs.stub else in_keras)
    for name, arguments in found.items():
        actual = inspect.signature(getattr(jaxopt_keras, name)).parameters
        listed = [x.arg for x in arguments.args]
        assert listed == list(actual)[: len(listed)] and listed[0] in ("learning_rate", "inner")
        own = [*listed, *(x.arg for x in arguments.kwonlyargs)]
        assert sorted([*own, *common_options()]) == sorted(actual)
        defaults = [ast.literal_eval(x) for x in (*arguments.defaults, *arguments.kw_defaults) if x is not None]
        assert defaults == [actual[argument].default for argument in own if argument != "inner"]
        assert arguments.kwarg and ast.unparse(arguments.kwarg.annotation) == "Unpack[CommonOptions]"


def test_the_options_are_spelled_once():
    text = "".join(path.read_text() for path, _ in WRITERS)
    assert {name: text.count(f" {name}: ") for name in common_options()} == dict.fromkeys(common_options(), 1)
    assert len(text.splitlines()) <= MOST_LINES


class Mine(Rule):
    """p <- p - learning_rate g"""

    pull: Decay = 0.5
    defaults = {"use_ema": True}


def test_a_new_rule_needs_nothing_else(monkeypatch):
    """A rule among the others is in both stubs, which are stale until they are written anew."""
    monkeypatch.setitem(optimizers.RULES, "Mine", Mine)
    monkeypatch.setitem(optimizers.FUNCTIONS, "mine", optimizers.pure(Mine))
    for path, stub in WRITERS:
        assert path.read_text() != stub()
        assert [x.arg for x in defined(stub())["Mine"].args][:2] == ["learning_rate", "pull"]
    assert defined(stubs.stub()).keys() >= {"Mine", "mine"}
    assert "use_ema: bool  # False, Mine: True\n" in stubs.stub()


def test_a_type_checker_flags_what_is_wrong(tmp_path):
    """Pyright on a user's file: each line that says so, and no other. It finds `Unpack` in `typing`."""
    path, settings = tmp_path / "user.py", tmp_path / "pyrightconfig.json"
    path.write_text(USER)
    settings.write_text(json.dumps({"pythonVersion": "3.11", "extraPaths": [str(ROOT)], "include": [path.name]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--project", str(settings)]
    done = subprocess.run([*command, "--pythonpath", sys.executable], capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    flagged = {each["range"]["start"]["line"] for each in found if each["severity"] == "error"}
    wrong = {i for i, line in enumerate(USER.splitlines()) if line.endswith("# wrong")}
    assert flagged == wrong, json.dumps(found, indent=1)
