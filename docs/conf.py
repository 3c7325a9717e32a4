"""Settings of Sphinx for the site: `make docs`."""

import json
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

# Imported after the path and the environment are set.
from docs.generator import api, mathml, optimizers  # noqa: E402
from docs.generator.docstrings import restructured  # noqa: E402  # likewise

project = "jaxopt_keras"
copyright = "the jaxopt_keras authors, Apache-2.0"
version = release = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build", "generator"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
default_role = "py:obj"  # in docstrings: a link if the name exists, else code
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 500
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"  # copy the input of an example only
suppress_warnings = [
    "myst.header",  # a page may begin with a part of the README
    "ref.python",  # a name in backquotes may be in several modules: the first one is linked
]

html_theme = "furo"
html_title = "jaxopt_keras"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False

# The site's pages for the project's other pages.
ELSEWHERE = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "tests/README.md": "testing.md",
    "jaxopt_keras/engine/native/README.md": "native.md",
}


def moved(text: str) -> str:
    """Convert the links of a page from the repository's files to the site's pages."""

    def target(found: re.Match[str]) -> str:
        return f"]({ELSEWHERE.get(found[1], found[1].removeprefix('docs/'))}"

    text = text.replace("](docs/static/", "](static/")
    known = "|".join(map(re.escape, ELSEWHERE))
    return re.sub(rf"\]\((?:\.\./)*({known}|docs/\w+\.md)(?=[)#])", target, text)


def included(app: Any, path: Any, parent: str, content: list[str]) -> None:
    content[0] = moved(content[0])


def generated(app: Any, page: str, source: list[str]) -> None:
    """Generate pages, or parts of them."""
    source[0] = moved(source[0])
    if page == "optimizers":
        source[0] += optimizers.page()
    elif page == "api":
        source[0] += api.page()
    elif page == "index":
        named = set(re.findall(r"^(\w+)$", source[0], re.MULTILINE))
        source[0] = source[0].replace("(other pages)", "\n".join(sorted(app.env.found_docs - named - {"index"})))


def documented(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # An empty comment before a property's docstring: napoleon would read words before a colon as its type.
    lines[:] = (["..", ""] if what == "property" else []) + restructured(lines)


def signed(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """Remove the ranges of hyperparameters from types."""
    return signature and re.sub(r"Annotated\[([^,\]]+),[^\]]*\]", r"\1", signature), returns


def skipped(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip fields of named tuples, for which autodoc has no text."""
    return type(obj).__name__ == "_tuplegetter" or None


def searchable(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Give the search page the texts of all pages, for its excerpts: a page opened as a file may not fetch others."""
    if page == "search":
        app.add_js_file("excerpts.js")


def excerpts(app: Any, error: Exception | None) -> None:
    """Write the texts of all pages, and a `fetch` that reads them."""
    if error is None and app.builder.name == "html":
        pages = {f"{name}.html": (Path(app.outdir) / f"{name}.html").read_text() for name in app.env.found_docs}
        articles = {name: re.search(r"<article.*?</article>", text, re.DOTALL) for name, text in pages.items()}
        texts = json.dumps({name: found[0] for name, found in articles.items() if found})
        script = (DOCS / "generator" / "excerpts.js").read_text().replace("TEXTS", texts)
        (Path(app.outdir) / "_static" / "excerpts.js").write_text(script)


def setup(app: Any) -> None:
    app.connect("html-page-context", searchable)
    app.connect("build-finished", excerpts)
    app.add_html_math_renderer("mathml", (mathml.inline, None), (mathml.block, None))
    app.connect("include-read", included)
    app.connect("source-read", generated)
    app.connect("env-get-outdated", lambda *_: ["optimizers", "api", "index"])
    app.connect("autodoc-process-docstring", documented, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", signed)
    app.connect("autodoc-skip-member", skipped)
