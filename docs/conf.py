"""How Sphinx makes the site: `make docs`."""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# After the path and the environment, which they need.
from docs.generator import api, mathml, optimizers  # noqa: E402
from docs.generator.docstrings import restructured  # noqa: E402  # likewise

project = "jaxopt_keras"
copyright = "the jaxopt_keras authors, Apache-2.0"
version = release = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "generator"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"  # in docstrings: a link where there is something of that name, else code
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 500
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"  # of an example, copy what was typed
suppress_warnings = [
    "myst.header",  # a page of ours may begin with a part of the README
    "ref.python",  # a name in backquotes that several modules have is the first's
]

html_theme = "furo"
html_title = "jaxopt_keras"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

# Where the site has the project's other pages.
ELSEWHERE = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "testing.md",
    "jaxopt_keras/engine/native/README.md": "native.md",
}


def moved(text: str) -> str:
    """The links of a page, which are those of the repository, to the site's pages."""

    def target(found: re.Match[str]) -> str:
        return f"]({ELSEWHERE.get(found[1], found[1].removeprefix('docs/'))}"

    known = "|".join(map(re.escape, ELSEWHERE))
    return re.sub(rf"\]\((?:\.\./)*({known}|docs/\w+\.md)(?=[)#])", target, text)


def included(app: Any, path: Any, parent: str, content: list[str]) -> None:
    content[0] = moved(content[0])


def generated(app: Any, page: str, source: list[str]) -> None:
    """Pages that are made, in whole or in part, whenever the site is."""
    source[0] = moved(source[0])
    if page == "optimizers":
        source[0] += optimizers.page()
    elif page == "api":
        source[0] += api.page()
    elif page == "index":
        named = set(re.findall(r"^(\w+)$", source[0], re.MULTILINE))
        source[0] = source[0].replace("(other pages)", "\n".join(sorted(app.env.found_docs - named - {"index"})))


def documented(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Before a property's docstring stands an empty comment: napoleon would take words before a colon for its type.
    lines[:] = (["..", ""] if what == "property" else []) + restructured(lines)


def signed(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """Types without the ranges of hyperparameters."""
    return signature and re.sub(r"Annotated\[([^,\]]+),[^\]]*\]", r"\1", signature), returns


def skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples, of which autodoc knows nothing but their number."""
    return type(obj).__name__ == "_tuplegetter" or None


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.block, None))
    app.connect("include-read", included)
    app.connect("source-read", generated)
    app.connect("env-get-outdated", lambda *_: ["optimizers", "api", "index"])
    app.connect("autodoc-process-docstring", documented, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signed)
    app.connect("autodoc-skip-member", skipped)
