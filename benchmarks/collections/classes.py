"""The optimizer classes in a folder, found in the text of its files: nothing is imported."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

HOOKS = ("update_step", "_resource_apply_dense", "_backend_update_step")
OLDER = re.compile(r"optimizer_experimental|_resource_apply|LegacyOptimizer|optimizers\.legacy")


class Found(NamedTuple):
    """A class of a file."""

    path: Path
    name: str
    legacy: bool  # written for Keras 2: its own Keras is tf_keras


def classes_in(folder: Path) -> list[Found]:
    """Return the classes with hooks of an optimizer in the Python files of `folder`, without its subfolders."""
    return [found for path in sorted(folder.glob("*.py")) for found in _classes_of(path)]


def _classes_of(path: Path) -> list[Found]:
    text = path.read_text(errors="replace")
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    legacy = OLDER.search(text) is not None
    return [Found(path, x.name, legacy) for x in tree.body if isinstance(x, ast.ClassDef) and _has_hook(x)]


def _has_hook(definition: ast.ClassDef) -> bool:
    return any(isinstance(x, ast.FunctionDef) and x.name in HOOKS for x in definition.body)
