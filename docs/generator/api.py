"""Generates the API page in reStructuredText: every public name of the package, and the public modules."""

import importlib
import inspect
import pkgutil
import re
import types

import jaxopt_keras as jk
from jaxopt_keras import interop
from jaxopt_keras.optimizers import CLASSES, FUNCTIONS, MORE_CLASSES, MORE_FUNCTIONS

# The sections in their order. Public names that are missing here are in a last section.
GROUPS = {
    "The pure face": ["Kernel", "State", "Plan", "Options", "partition", "frozen", "loss_scaled", "pack", "Packed",
                      "nbytes"],
    "The stateful face": ["Optimizer", "Variable", "value_and_grad", "pack_variables", "MultiOptimizer", "OptimizerMap",
                          "LossScaleOptimizer", "IndexedSlices", "get", "serialize", "deserialize"],
    "A rule": ["Rule"],
}  # fmt: skip
MODULES = {"The language of rules": "language.rule", "Helpers for rules": "language.numerics"}
INHERITED = {"Kernel": "tuple", "Optimizer": "", "Variable": ""}  # their methods come from mixins, up to a base
NAMED = CLASSES | FUNCTIONS | MORE_CLASSES | MORE_FUNCTIONS  # they are on the page of optimizers
MACHINERY = "Field, Hyperparameters, Marker, Stateless, as_scalar, fields_of, markers"  # of the language of rules
INTERNAL = (
    "hook_hyper, hook_variables, hooks_running, pack_into, places, view, "
    "compiled, core, current, given, in_group, initial, keep, program, rule, skeleton"
)


def names() -> list[str]:
    """Return the public names, except the named optimizers, which are on another page."""
    return [
        name
        for name, value in vars(jk).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in {*NAMED, "optimizers"}
    ]


def page() -> str:
    others = [name for name in names() if name not in sum(GROUPS.values(), [])]
    groups = GROUPS | ({"More": others} if others else {})
    parts = [heading(title) + "\n\n".join(map(entry, members)) for title, members in groups.items()]
    public = {f"`{name}`": f"jaxopt_keras.{name}" for name in modules()}
    named = {title: f"jaxopt_keras.{name}" for title, name in MODULES.items()}
    return "\n\n".join([*parts, *(module(title, name) for title, name in (named | public).items())])


def heading(title: str) -> str:
    return f"{title}\n{'-' * len(title)}\n\n"


def entry(name: str) -> str:
    if not inspect.isclass(getattr(jk, name)):
        return f".. autofunction:: jaxopt_keras.{name}"
    inherited = f"\n   :inherited-members: {INHERITED[name]}" if name in INHERITED else ""
    return f".. autoclass:: jaxopt_keras.{name}\n   :members:{inherited}\n   :exclude-members: {INTERNAL}"


def modules() -> list[str]:
    """Return the public modules: those that the package exports, and those of `interop` that can be imported."""
    shown = [getattr(jk, name) for name in exported(jk) if name != "optimizers"]
    found = [value.__name__.removeprefix("jaxopt_keras.") for value in shown if isinstance(value, types.ModuleType)]
    for _, name, _ in pkgutil.iter_modules(interop.__path__):
        try:
            importlib.import_module(f"jaxopt_keras.interop.{name}")
        except ImportError:  # its library is not installed
            continue
        found.append(f"interop.{name}")
    return found


def exported(module: types.ModuleType) -> list[str]:
    """Return the names that a package exports by `from x import y as y`."""
    return re.findall(r"^from .* import \w+ as (\w+)$", inspect.getsource(module), re.MULTILINE)


def module(title: str, name: str) -> str:
    found = importlib.import_module(name)
    shown = ", ".join(exported(found))
    already = [known for known in names() if getattr(found, known, None) is getattr(jk, known)]
    hidden = ", ".join([MACHINERY, *NAMED, *already])
    return heading(title) + f".. automodule:: {name}\n   :members: {shown}\n   :exclude-members: {hidden}\n"
