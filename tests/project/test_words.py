"""Docstrings, comments and pages use plain words: those of docs/glossary.md, and none of `BANNED`."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ["jaxopt_keras", "benchmarks", "docs", "examples", "tests"]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "Makefile", "conftest.py")]
FILES = [
    path
    for path in [*PAGES, *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))]
    if path.suffix in (".py", ".md", ".rst", ".c", ".h") or path.name == "Makefile"
    if "_build" not in path.parts and path != Path(__file__)
]

BANNED = {  # a pattern of words: what to write in their place
    r"the other way (a)?round": "what is converted into what",
    r"who|whom|whoever|nobody|somebody": "the noun: the caller, the user, other code",
    r"the means of": "the noun: settings, checks, views",
    r"what has|those that have": "the noun: arrays, slots, parameters",
    r"hand(s|ed|ing)? (\w+ ){0,4}over": "pass; dispatch",
    r"lie|lies|lay|lain": "is stored, is placed, is sharded like",
    r"in codes": "quantized",
    r"at (its|the|their|our) door": "validated",
    r"(take|takes|taken|taking|took) (\w+ ){0,4}apart": "unpack, split",
    r"t(ell|ells|old) (\w+ ){0,2}apart": "distinguish",
    r"salts?": "seed, random bits",
    r"sits?|lives?": "is, is stored",
}
FIRST = {"what", "those", "who", "whoever", "likewise", "something", "everything"}  # no first word of a docstring
PATTERNS = {re.compile(rf"\b(?:{words})\b", re.IGNORECASE): remedy for words, remedy in BANNED.items()}
CODE = re.compile(r"``.*?``|`[^`\n]*`|\]\([^)]*\)")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each piece of prose: docstrings and comments of code, all of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from docstrings(text)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
    elif path.suffix in (".c", ".h"):
        for found in re.finditer(r"//[^\n]*|/\*.*?\*/", text, re.DOTALL):
            yield text.count("\n", 0, found.start()) + 1, found[0]
    elif path.name == "Makefile":
        yield from ((i, line[line.index("#") :]) for i, line in enumerate(text.splitlines(), 1) if "#" in line)
    else:
        yield from paragraphs(text)


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """The parts of a page between blank lines."""
    line = 1
    for part in re.split(r"(\n\s*\n)", text):
        if part.strip():
            yield line, part
        line += part.count("\n")


def docstrings(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (doc := ast.get_docstring(node)):
            yield node.body[0].lineno, doc


def faults(path: Path) -> list[str]:
    """The banned words of a file, each with its line and remedy."""
    found = []
    for line, text in prose(path):
        plain = " ".join(CODE.sub("`", text).split())
        for pattern, remedy in PATTERNS.items():
            found += [f"line {line}: {match[0]!r}; write: {remedy}" for match in pattern.finditer(plain)]
    if path.suffix == ".py":
        firsts = ((line, doc.split()[0].strip(".,:").lower()) for line, doc in docstrings(path.read_text()))
        found += [f"line {line}: a docstring that starts with {word!r}" for line, word in firsts if word in FIRST]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path):
    assert not faults(path)


@pytest.mark.parametrize(
    "name, text, lines",
    [
        ("a.py", '"""Adds."""\n\n\ndef f():\n    """What nobody reads."""\n    return 1  # it lies here\n', [5, 5, 6]),
        ("a.py", '"""The other way round."""\nnobody = "nobody"\n', [1]),
        ("a.c", "int a;  // handed\n/* Hands the arrays\n over */\n", [2]),
        ("Makefile", "a: # in codes\n\techo nobody\n", [1]),
        ("a.md", "One `nobody`.\n\nThe means of\nsettings.\n\n```python\nx = 1  # told apart\n```\n", [3, 6]),
    ],
)
def test_banned_words_are_found(tmp_path, name, text, lines):
    (tmp_path / name).write_text(text)
    assert sorted(int(fault.split()[1].strip(":")) for fault in faults(tmp_path / name)) == lines
