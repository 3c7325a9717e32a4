"""The Python in README.md and docs/ runs as it is printed."""

import re
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(
    r"(?:^ *<!-- (?:skip: (?P<skip>[^\n]+?)|needs: (?P<needs>\w+)) -->\s*\n)?"
    r"^(?P<indent> *)```python[^\n]*\n(?P<code>(?s:.*?))^(?P=indent)```[ ]*$",
    re.MULTILINE,
)


class Block(NamedTuple):
    page: str
    line: int  # of the code's first line, counted from 1
    code: str
    skip: str | None
    needs: str | None = None  # a package


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page=str(page.relative_to(ROOT)),
            line=text.count("\n", 0, found.start("code")) + 1,
            code=re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            skip=found["skip"],
            needs=found["needs"],
        )
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES if page.exists() for block in blocks(page)]


@pytest.mark.parametrize("block", BLOCKS, ids=[f"{block.page}:{block.line}" for block in BLOCKS])
@pytest.mark.usefixtures("jax_defaults")
def test_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if block.skip:
        pytest.skip(block.skip)
    if block.needs:
        pytest.importorskip(block.needs)
    monkeypatch.chdir(tmp_path)  # it may save a checkpoint or a plot
    # A real module, as a script is: what pickles or resolves its annotations looks it up by name.
    script = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", script)
    # The blank lines in front make a traceback name the page's own line.
    exec(compile("\n" * (block.line - 1) + block.code, block.page, "exec"), script.__dict__)


def test_blocks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nexit 1\n```\n\n```python\nx = 1\n```\n"
        "<!-- skip: needs --a TPU -->\n\n  ```python\n  if x:\n      y\n\n  ```\n"
        "<!-- needs: torch -->\n```python\nx\n```\n"
    )
    assert blocks(page) == [
        Block("page.md", 6, "x = 1\n", None),
        Block("page.md", 11, "if x:\n    y\n\n", "needs --a TPU"),
        Block("page.md", 17, "x\n", None, "torch"),
    ]
