"""One class of a collection in a process of its own: `python program.py FILE CLASS SIDE RESULT`.

SIDE is "theirs", the class with its own Keras on TensorFlow, "nudged", the same with gradients that differ in the last
places, or "ours", the same text with other imports. RESULT is a file of NumPy arrays: the variables after some of the
steps. The last line of the output is JSON.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

import numpy as np

STEPS, EVERY = 40, 10
SHAPES = {"kernel": (6, 4), "bias": (4,), "head": (4, 3)}
IMPORT = re.compile(r"^(\s*(?:from|import)\s+)(tensorflow|keras)(?=[.\s])", re.MULTILINE)
HERE = {"tensorflow": "jaxopt_keras.interop.tensorflow", "keras": "jaxopt_keras.interop.tensorflow.keras"}
GIVEN = {"learning_rate": 0.01, "lr": 0.01, "num_iterations": STEPS, "total_steps": STEPS, "batch_size": 8}
NOW: list[Any] = [0, itertools.count()]  # the number of the step, and a counter of its random draws
INNER = ("optimizer", "base_optimizer")


def main() -> None:
    path, name, side, result = sys.argv[1:]
    try:
        report = run(Path(path), name, side, result)
    except BaseException as error:
        report = {"error": described(error), "where": module_of(error)}
    print("\n" + json.dumps(report))


def run(path: Path, name: str, side: str, result: str) -> dict[str, Any]:
    tf = imports(side)
    cls = getattr(load(path, side), name)
    how = ["compiled", "not compiled"] if side == "ours" else ["theirs"]
    for way in how:
        try:
            arrays = trained(tf, cls, side, way == "not compiled")
        except Exception as error:
            if way == "compiled" and "jit_compile=False" in str(error):
                continue  # the error names the remedy
            raise
        np.savez(result, *arrays)
        return {"how": way}
    raise AssertionError


def imports(side: str) -> Any:
    """Import TensorFlow, or what takes its place, with random numbers that are the same for both."""
    tf: Any
    active_step: Any = lambda: None
    if side == "ours":
        os.environ["KERAS_BACKEND"] = "jax"
        import jaxopt_keras.interop.tensorflow as tf
        from jaxopt_keras.stateful.custom.steps import active_step
    else:
        import tensorflow as tf

        if os.environ.get("TF_USE_LEGACY_KERAS"):
            older: Any = types.ModuleType("keras.optimizers.optimizer_experimental")
            older.optimizer = importlib.import_module("tf_keras.src.optimizers.optimizer")
            sys.modules |= {"keras": tf.keras, "keras.optimizers": tf.keras.optimizers, older.__name__: older}

    def drawn(shape: Any = (), *args: Any, dtype: Any = None, **kwargs: Any) -> Any:
        dims = tuple(int(n) for n in shape)
        step, count = NOW
        if (running := active_step()) is not None:  # the step may be traced
            count = running[1]
        call = next(count)
        make = lambda step: np.random.default_rng((step, call)).standard_normal(dims).astype("float32")
        if running is not None and step:
            return tf.cast(tf.gather(np.stack([make(n) for n in range(1, STEPS + 1)]), running[0]), dtype or "float32")
        return tf.cast(tf.convert_to_tensor(make(step)), dtype or tf.float32)

    with contextlib.suppress(AttributeError):
        tf.random.normal = tf.random.uniform = drawn
    return tf


def load(path: Path, side: str) -> Any:
    """Import a file. Its package is not imported: other modules of the package are found beside the file."""
    text = path.read_text()
    if side == "ours":
        text = IMPORT.sub(lambda m: m[1] + HERE[m[2]], text)
        if re.search(r"^import jaxopt_keras\.interop\.tensorflow$", text, re.MULTILINE):
            raise ImportError("`import tensorflow` without `as` cannot be replaced by a longer name")
    typeguard: Any = types.ModuleType("typeguard")  # addons check their types with it
    typeguard.typechecked = lambda f: f
    sys.modules["typeguard"] = typeguard
    sys.meta_path.append(Siblings(path, side))
    module = types.ModuleType(path.stem)
    module.__file__ = str(path)
    sys.modules[path.stem] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


class Siblings(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that contain a file, as empty packages whose names are those of all their files."""

    def __init__(self, path: Path, side: str) -> None:
        self.path, self.side = path, side
        root = path.parent.parent
        self.packages = {f"{root.name}.{x.name}": x for x in root.iterdir() if x.is_dir()} | {root.name: root}
        self.packages |= {".".join(path.parent.parts[i:]): path.parent for i in range(len(path.parent.parts))}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        package, _, leaf = name.rpartition(".")
        folder = self.packages.get(name)
        if folder is not None:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if package in self.packages and (self.packages[package] / f"{leaf}.py").exists():
            return importlib.machinery.ModuleSpec(name, self)
        return None

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: Any) -> None:
        name = module.__name__
        if name in self.packages:
            module.__path__ = []
            module.__getattr__ = lambda attribute: self.defined(name, attribute)
            return
        package, _, leaf = name.rpartition(".")
        text = (self.packages[package] / f"{leaf}.py").read_text()
        text = IMPORT.sub(lambda m: m[1] + HERE[m[2]], text) if self.side == "ours" else text
        try:
            exec(compile(text, name, "exec"), module.__dict__)
        except Exception:  # a module of types, for example: every name in it is `Any`
            module.__getattr__ = lambda attribute: Any

    def defined(self, package: str, attribute: str) -> Any:
        """Return what a file of the package defines under a name, as its `__init__.py` would import it."""
        for file in sorted(self.packages[package].glob("*.py")):
            pattern = rf"^\s*(?:class |def )?{attribute}\b\s*[=(:]"
            if file.stem != "__init__" and re.search(pattern, file.read_text(), re.MULTILINE):
                return getattr(importlib.import_module(f"{package}.{file.stem}"), attribute)
        raise AttributeError(f"no file of {package} defines {attribute}")


def trained(tf: Any, cls: Any, side: str, uncompiled: bool) -> list[np.ndarray]:
    """Return the variables after every tenth of the steps."""
    optimizer = make(tf, cls)
    if uncompiled:
        optimizer.jit_compile = False
    random = np.random.default_rng(0)
    make_variable = tf.Variable
    if side != "ours" and not os.environ.get("TF_USE_LEGACY_KERAS"):
        import keras

        make_variable = keras.Variable
    start = {name: random.standard_normal(shape).astype("float32") for name, shape in SHAPES.items()}
    variables = [make_variable(x, name=name) for name, x in start.items()]
    if hasattr(optimizer, "build") and not hasattr(optimizer, "_create_all_weights"):
        optimizer.build(variables)
    seen = []
    for step in range(STEPS):
        NOW[:] = step + 1, itertools.count()
        grads = [(0.1 * x + random.standard_normal(x.shape)).astype("float32") for x in start.values()]
        if side == "nudged":
            grads = [g * np.float32(1 + 2**-22) for g in grads]
        grads = [tf.convert_to_tensor(g) for g in grads]
        optimizer.apply_gradients(zip(grads, variables, strict=True))
        if (step + 1) % EVERY == 0 or step == 0:
            seen += [np.array(v.numpy() if hasattr(v, "numpy") else v) for v in variables]
    if all(np.array_equal(x, y) for x, y in zip(start.values(), seen[-len(start) :], strict=True)):
        raise RuntimeError("the class changes no variable")
    return seen


def make(tf: Any, cls: Any) -> Any:
    """Return an instance with default arguments, and usual ones where there is no default."""
    wanted = inspect.signature(cls).parameters.values()
    missing = [p.name for p in wanted if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    given = {name: GIVEN[name] for name in missing if name in GIVEN}
    legacy = getattr(tf.keras.optimizers, "legacy", tf.keras.optimizers)
    uses_legacy = "_resource_apply_dense" in vars(cls)
    inner = (legacy if uses_legacy else tf.keras.optimizers).Adam
    given |= {name: inner(0.01) for name in missing if name in INNER}
    if unknown := [name for name in missing if name not in given]:
        raise LookupError(f"the class wants arguments that the program cannot know: {unknown}")
    return cls(**given)


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip()


def module_of(error: BaseException) -> str:
    """Return the file that raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    main()
