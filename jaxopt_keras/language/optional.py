"""Optional libraries, which are imported when they are needed."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def optional(module: str, what: str, extra: str, otherwise: str = "") -> Any:
    """Import a module of an optional library.

    Args:
        module: the module.
        what: what needs it.
        extra: the extra of this package that installs it (`project.optional-dependencies` in pyproject.toml).
        otherwise: what to do without it.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing(module.partition(".")[0], what, extra, otherwise) from error


def when_imported(module: str, then: Callable[[Any], None]) -> None:
    """Call `then` with a module of an optional library as soon as it is imported, by anyone; at once if it is.

    Flax must know our types before it serializes them, and its import would take half a second of ours.
    """
    if module in sys.modules:
        then(sys.modules[module])
    else:
        sys.meta_path.insert(0, _Waiting(module, then))


class _Waiting:
    """A finder that waits for the import of one module. It leaves the list of finders when that comes."""

    def __init__(self, module: str, then: Callable[[Any], None]) -> None:
        self.module, self.then = module, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)  # by the other finders
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_tell(module: Any) -> None:
            execute(module)
            self.then(module)

        spec.loader.exec_module = execute_and_tell
        return spec


def missing(library: str, what: str, extra: str, otherwise: str = "") -> ImportError:
    """Return the error that says which extra installs `library`."""
    return ImportError(f"{what} needs {library}: `pip install 'jaxopt_keras[{extra}]'`.{otherwise}")
