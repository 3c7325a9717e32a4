"""Converts docstrings, which are plain text for terminals, to reStructuredText."""

import re
import textwrap
from collections.abc import Collection

from docs.generator.equations import display, pieces

SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields)\b.*:$")
ERROR = re.compile(r"(?<=[.;]) (?=(?:\w+Error, )*\w+Error: )")
CODE = re.compile(r"(`[^`]*`)(?!`)")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def prose(text: str, known: Collection[str] = ()) -> str:
    """Convert text: equations to math, papers to links; all other markup but backquotes is escaped.

    >>> print(prose("`jit`s of |g| and *args (g <- g + weight_decay p)."))
    `jit`\\ s of \\|g\\| and \\*args (:math:`g \\leftarrow g + \\lambda\\,p`).
    """
    first, *parts = CODE.split(text)
    return _plain(first, known) + "".join(
        # Markup must end with a space; a backslash removes it from the output.
        part if i % 2 else re.sub(r"^(?=\w)", r"\\ ", _plain(part, known))
        for i, part in enumerate(parts, 1)
    )


def _plain(text: str, known: Collection[str]) -> str:
    return "".join(
        f":math:`{piece}`" if is_equation else ARXIV.sub(_link, re.sub(r"([*|\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", piece))
        for is_equation, piece in pieces(text, known)
    )


def _link(found: re.Match[str]) -> str:
    return f"`{found[0]} <https://arxiv.org/abs/{found[1]}>`__"


def restructured(lines: list[str], known: Collection[str] = ()) -> list[str]:
    """Convert the lines of a docstring. Indented blocks become equations if they are some, otherwise code.

    Sections such as "Args:" are left to napoleon.
    """
    out: list[str] = []
    for paragraph in paragraphs(lines):
        first = paragraph[0]
        if first.startswith("    "):
            block = display([line for line in paragraph if line.strip()], known)
            out += [".. math::" if block else f".. code-block:: {language(paragraph)}", ""]
            out += ["    " + line for line in (block.splitlines() if block else [line[4:] for line in paragraph])]
        elif first.startswith(">>>"):
            out += paragraph
        elif first == "Raises:":
            said = " ".join(line.strip() for line in paragraph[1:])
            out += [first, *("    " + prose(error, known) for error in ERROR.split(said))]
        elif SECTION.match(first):
            out += [first, *prose("\n".join(paragraph[1:]), known).splitlines()]
        else:
            out += prose("\n".join(paragraph), known).splitlines()
        out.append("")
    return out


def language(lines: list[str]) -> str:
    try:
        compile(textwrap.dedent("\n".join(lines)), "", "exec")
    except SyntaxError:
        return "text"
    return "python"


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Split at blank lines; an indented block with blank lines inside is one paragraph."""
    found: list[list[str]] = []
    for text in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        new = text.splitlines()
        if found and new and new[0].startswith("    ") and found[-1][0].startswith("    "):
            found[-1] += ["", *new]
        elif found and new and new[0].startswith("    ") and SECTION.match(found[-1][0]):
            found[-1] += ["", *new]
        elif new:
            found.append(new)
    return found
