"""The Python values that a loss reads: its compiled program has them as constants, so a change needs another program.

`Reads` follows the code of a function: the globals, closures and attributes that it names, the containers and functions
that these hold. It remembers where each value was found, and compares the values there with those of the trace. Code of
installed packages is not followed, and arrays are compared by identity.
"""

import dis
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxopt_keras.stateful.transactions import Transactions
from jaxopt_keras.stateful.variable import ArrayLike

LIMIT = 1000  # places that are compared before each call, and elements of a container
PLAIN = (bool, int, str, bytes, types.NoneType, np.generic, type(Ellipsis))
FLOATS = (float, complex)
CODE = (types.FunctionType, property, classmethod, staticmethod)
CONTAINERS = (list, tuple, dict, set, frozenset)
GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
ABSENT = object()


class Reads:
    """The Python values that a function reads.

    Args:
        function: any callable.
        before: the reads before the function ran. What it has changed since is not compared.
    """

    def __init__(self, function: Any, before: "Reads | None" = None) -> None:
        self.places: dict[tuple[Any, ...], Callable[[], Any]] = {}  # (id of the holder, name) -> reads the value there
        self.seen: dict[int, Any] = {}  # by id; kept alive, so that no other object gets the identity of one of them
        self.names: set[str] = set()  # of attributes
        self.holders: list[tuple[Any, set[str]]] = []  # objects, and the names that were looked for in them
        self._visit(function)
        while any([self._look_up(*holder) for holder in [*self.holders]]):
            pass  # functions that are found name more attributes
        if before is not None:
            for key in before.changed_places():
                self.places.pop(key, None)
        self.values = [read() for read in self.places.values()]  # kept alive, for their identity
        self.tokens = [*map(token, self.values)]
        self.values = [(*x,) if isinstance(x, CONTAINERS) else x for x in self.values]

    def changed_places(self) -> list[tuple[Any, ...]]:
        """Return the places of the values that are others now; the last element of a place is its name."""
        now = [token(read()) for read in self.places.values()]
        if now == self.tokens:
            return []
        return [key for key, old, new in zip(self.places, self.tokens, now, strict=True) if old != new]

    def _add(self, holder: Any, name: str, read: Callable[[], Any]) -> None:
        """Remember a place, and visit the value there."""
        if (id(holder), name) not in self.places and len(self.places) < LIMIT:
            self.seen.setdefault(id(holder), holder)
            self.places[id(holder), name] = read
            self._visit(read(), name)

    def _visit(self, value: Any, name: str = "") -> None:
        """Find what a value leads to."""
        if id(value) in self.seen or isinstance(value, (*PLAIN, *FLOATS, jax.Array, np.ndarray, ArrayLike)):
            return
        self.seen[id(value)] = value
        if isinstance(value, types.FunctionType):
            self._visit_function(value)
        elif isinstance(value, CONTAINERS):
            if len(value) <= LIMIT:
                self.places[id(value), name] = lambda: value
                for x in value.values() if isinstance(value, dict) else value:
                    self._visit(x, name)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__)
            self._visit(value.__func__)
        elif isinstance(value, (classmethod, staticmethod)):
            self._visit(value.__func__)
        elif isinstance(value, property):
            self._visit(value.fget)
        elif isinstance(value, functools.partial):
            self._visit([value.func, *value.args, *value.keywords.values()], name)
        elif isinstance(value, (types.ModuleType, type)):
            if not installed(value.__name__ if isinstance(value, types.ModuleType) else value.__module__):
                self.holders.append((value, set()))
        else:
            self.holders.append((value, set()))
            self._visit(vars(type(value)).get("__call__"))
            if isinstance(value, Transactions):
                self._add(value, "_options", lambda: value._options)

    def _visit_function(self, function: types.FunctionType) -> None:
        if installed(function.__module__ or ""):
            return
        space = function.__globals__
        for opname, name in named(function.__code__):
            if opname == "IMPORT_NAME":
                self._visit(_module(name))
            elif opname not in GLOBAL:
                self.names.add(name)
            elif name in space:
                self._add(space, name, functools.partial(space.get, name, ABSENT))
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self._add(cell, name, functools.partial(contents, cell))
        for x in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._visit(x)

    def _look_up(self, holder: Any, known: set[str]) -> bool:
        """Find the attributes of `holder` with names that are new; return whether there were such names."""
        new = self.names - known
        known |= new
        for name in new:
            found = [vars(cls)[name] for cls in _classes(holder) if name in vars(cls)]
            code = [x for x in found if isinstance(x, CODE)]
            for x in code:
                self._visit(x)
            own = name in getattr(holder, "__dict__", ())
            own = own or (isinstance(holder, Transactions) and not hasattr(type(holder), name) and plain(holder, name))
            if own or len(found) > len(code):
                self._add(holder, name, functools.partial(getattr, holder, name, ABSENT))
        return bool(new)


def token(value: Any) -> Any:
    """Return something that is equal for values that lead to the same program; of a container, for its elements."""
    if isinstance(value, dict) and len(value) <= LIMIT:
        return dict, *((identity(key), identity(x)) for key, x in value.items())
    if isinstance(value, CONTAINERS) and len(value) <= LIMIT:
        return type(value), *map(identity, value)
    return identity(value)


def identity(value: Any) -> Any:
    """Return the type and value of a number, string or flag, and the identity of anything else."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, FLOATS):
        return type(value), repr(value)  # tells 0.0 from -0.0, and NaN is equal to itself
    return id(value)


def plain(holder: Any, name: str) -> bool:
    """Whether `holder` has an attribute `name` that is a number, a string or a flag."""
    return isinstance(getattr(holder, name, ABSENT), (*PLAIN, *FLOATS))


def contents(cell: types.CellType) -> Any:
    """Return what a closure's cell holds; the cell itself, if the name has no value yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return cell


def named(code: types.CodeType) -> Iterator[tuple[str, str]]:
    """Yield the operation and the name for each name that `code` and the functions within it load or import."""
    for instruction in dis.get_instructions(code):
        if instruction.opcode in dis.hasname and not instruction.opname.startswith(("STORE", "DELETE")):
            yield instruction.opname, instruction.argval
        elif isinstance(instruction.argval, str) and instruction.argval.isidentifier():
            yield "LOAD_ATTR", instruction.argval  # `getattr(x, "name")`
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from named(constant)


@functools.cache
def installed(module: str) -> bool:
    """Whether a module belongs to an installed package or to Python: its values are taken for constants."""
    file = getattr(_module(module), "__file__", None) or ""
    return (
        module.partition(".")[0] in ("jaxopt_keras", "builtins", "")
        or "site-packages" in file
        or "dist-packages" in file
        or file.startswith(sysconfig.get_path("stdlib"))
    )


def _module(name: str) -> Any:
    return sys.modules.get(name)


def _classes(holder: Any) -> Any:
    """Return the classes in which attributes of `holder` may be, but for those of installed packages."""
    classes = holder.__mro__ if isinstance(holder, type) else type(holder).__mro__
    return [cls for cls in classes if not installed(cls.__module__)]
