"""Imports point one way, so that the arithmetic can be read and used without what stands on it."""

import ast
import pathlib

import pytest

import jaxopt_keras

ROOT = pathlib.Path(jaxopt_keras.__file__).parent

# Each layer may import those before it, and the others in its own line.
LAYERS = [
    ["language"],
    ["rules", "schedules", "storage", "packing"],
    ["engine"],
    ["pure"],
    ["stateful", "optimizers"],
    ["checkpoint", "history"],
    [""],  # the package itself
    ["interop"],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(parts: tuple[str, ...]) -> str:
    return "" if parts in ((), ("__init__",)) else parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """The layers that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxopt_keras":
            parts = tuple((node.module or "").split(".")[1:])
            names = [(*parts, a.name) for a in node.names] if not parts else [parts]
            found |= {layer_of(p) if p[0] in RANK else "" for p in names}
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names]
            found |= {layer_of(tuple(n[1:])) for n in names if n[0] == "jaxopt_keras"}
    return found


def roots(path: pathlib.Path) -> set[str]:
    """The packages that a file imports, also inside its functions."""
    nodes = [*ast.walk(ast.parse(path.read_text()))]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_the_package_imports_nothing_that_only_a_checkout_has():
    outside = {"benchmarks", "docs", "examples", "tests"}
    assert not {path: found for path in FILES if (found := roots(path) & outside)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    here = layer_of(parts)
    assert here in RANK, f"put {here} into LAYERS"
    above = {name for name in imported(path) if RANK[name] > RANK[here]}
    assert not above, f"{path.relative_to(ROOT)} imports {above}, which stand above it"


def test_every_room_is_in_the_plan_of_the_house():
    page = (ROOT.parent / "docs" / "design.md").read_text().split("## The rooms")[1].split("## ")[0]
    rooms = [*ROOT.glob("*.py"), *(ROOT / "engine").glob("*.py")]
    folders = [path for path in ROOT.iterdir() if (path / "__init__.py").exists()]
    names = {path.name for path in rooms} | {f"{path.name}/" for path in folders}
    assert not {name for name in names - {"__init__.py"} if name not in page.split()}


@pytest.mark.parametrize("path", sorted((ROOT / "engine").rglob("*.py")), ids=lambda p: p.stem)
def test_the_engine_knows_no_optimizer_by_name(path):
    names = {rule.__name__.lower() for rule in jaxopt_keras.optimizers.RULES.values()}
    words = {word.lower() for word in path.read_text().replace(".", " ").replace("_", " ").split()}
    assert not names & words


def test_other_libraries_are_imported_only_when_used():
    """A module of `interop` may import its library, since it derives classes from it; other modules may not."""
    standard = set(__import__("sys").stdlib_module_names)
    for path in FILES:
        folder, *name = path.relative_to(ROOT).with_suffix("").parts
        allowed = {"jax", "numpy", "optax", "jaxopt_keras"} | ({name[0]} if folder == "interop" and name else set())
        for node in ast.parse(path.read_text()).body:  # top level only
            if isinstance(node, ast.Import):
                roots = {a.name.split(".")[0] for a in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots = {(node.module or "").split(".")[0]}
            else:
                continue
            assert roots <= allowed | standard, f"{path.relative_to(ROOT)} imports {roots}"


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_once(path):
    assert len(path.read_text().splitlines()) <= 350
