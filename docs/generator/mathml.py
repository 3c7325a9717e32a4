"""Converts equations to MathML, which browsers draw without scripts, fonts or network."""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError


def converted(node: Any, block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        raise ExtensionError(f"{node.source}:{node.line}: {error} in {node.astext()!r}") from error


def inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(converted(node, block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="equations">{converted(node, block=True)}</div>\n')
    raise nodes.SkipNode
