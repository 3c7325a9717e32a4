"""Whether a step would make a finite number NaN or infinite, found without storing its results.

A step overwrites its arrays in place, so a guard must know before the first of them is written. The results are
therefore computed twice: once into sums, which tell whether they are finite, and once into memory. What is expensive
(products and factorizations of matrices) is computed once and kept for both.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxopt_keras.engine import rows
from jaxopt_keras.engine.native.ir import (
    WRITE_COLUMNS,
    Atom,
    Constant,
    Equation,
    Trace,
    Value,
    evaluate,
    needed,
    renamed,
    trace_of,
    traced,
)
from jaxopt_keras.engine.native.rows import is_scatter
from jaxopt_keras.language.numerics import compute_dtype, is_inexact
from jaxopt_keras.language.places import platform

# Computed once. Everything else costs about as much as to read its inputs.
EXPENSIVE = {
    "dot_general", "ragged_dot_general", "conv_general_dilated", "custom_partitioning", "while", "scan", "sort", "fft",
    "top_k", "eigh", "eig", "svd", "lu", "qr", "householder_product", "geqrf", "cholesky", "triangular_solve", "schur",
    "tridiagonal", "tridiagonal_solve", "hessenberg", "psum", "psum2", "psum_invariant", "pmax", "pmin", "all_gather",
    "all_to_all", "ppermute", "reduce_scatter", "pure_callback", "io_callback", "ffi_call", "pallas_call",
}  # fmt: skip


class Before(NamedTuple):
    """The array that a result of a step replaces."""

    old: Any
    is_amount: bool = False  # the result is added to `old`
    part: Any = None  # the results of one part that have the same shape are looked at together; None: each alone


def before(tree: Any, part: Any = None) -> Any:
    """Return a `Before` for each array of a tree."""
    return jax.tree.map(lambda x: Before(x, False, part), tree)


def before_parameters(out: Any, params: Any, write: bool, part: Any = None) -> Any:
    """Return a `Before` for each array in the first result of a step: new parameters, or else the amounts to add.

    Args:
        out: the result of a step that changes nothing.
        params: the parameters, or None if they are not known. Where an amount is None they are not looked at.
    """
    if write or params is None:
        return before(out, part)
    add = lambda amount, p: None if amount is None else Before(p, True, part)
    return jax.tree.map(add, out, params, is_leaf=lambda x: x is None)


class Probe:
    """The equations of `function()`, a step, which is traced once."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.trace, self.structure = trace_of(function)
        equations = self.trace.equations
        read = {x for e in equations for x in e.inputs}
        self.chosen = [e for e in equations if e.outputs and (e.effects or is_expensive(e, read))]
        chosen = {*self.chosen}
        self.rest = [e for e in equations if e not in chosen]

    def first_results(self) -> dict[Value, Any]:
        """Compute what is expensive."""
        known, wanted = dict(self.trace.constants), [x for e in self.chosen for x in e.outputs]
        evaluate([e for e in needed(self.trace.equations, wanted) if e.outputs], known)
        return {x: known[x] for x in wanted}

    def results(self, known: dict[Value, Any]) -> Any:
        """Return what `function()` returns; `known` has the first results."""
        known = self.trace.constants | known
        if platform() == "tpu":  # otherwise the results of the probe would be stored, and selected from there
            known = dict(zip(known, jax.lax.optimization_barrier([*known.values()]), strict=True))
        evaluate(needed(self.rest, self.trace.outputs), known)
        return jax.tree.unflatten(self.structure, [_read(x, known) for x in self.trace.outputs])

    def stays_finite(self, known: dict[Value, Any], replaced: Any) -> Array:
        """Return whether each number in the results is finite, but for those that were not finite before.

        Args:
            known: the first results.
            replaced: for each result what it replaces, as a tree of `Before`.
        """
        known = self.trace.constants | known
        olds = jax.tree.leaves(replaced, is_leaf=lambda x: isinstance(x, Before))
        return ~_is_lost(self.chosen + self.rest, self.trace.outputs, known, olds)


def stay_finite(results: Any, replaced: Any) -> Array:
    """Return whether results that exist already are finite where what they replace, a tree of `Before`, is."""
    olds = jax.tree.leaves(replaced, is_leaf=lambda x: isinstance(x, Before))
    pairs = [(x, old) for x, old in zip(jax.tree.leaves(results), olds, strict=True) if is_inexact(x)]
    news = [(old.old + x if old.is_amount else x, old.old) for x, old in pairs]
    return jnp.array(all(bool(jnp.all(are_finite(x) | ~are_finite(old))) for x, old in news))


def is_expensive(e: Equation, read: set[Atom] | None = None) -> bool:
    """Return whether an equation is computed once.

    Args:
        read: what other equations read. A branch whose results no equation reads (accumulation) is looked into instead.
    """
    if e.name != "cond":
        return e.name in EXPENSIVE
    if read is not None and not any(x in read for x in e.outputs):
        return False
    return any(is_expensive(x) for branch in map(_traced, e.params["branches"]) for x in branch.equations)


def writes_rows(e: Equation) -> bool:
    return is_scatter(e) or e.name == WRITE_COLUMNS


def _traced(branch: Any) -> Trace:
    return branch if isinstance(branch, Trace) else traced(branch)


def _is_lost(equations: list[Equation], outputs: Sequence[Atom], known: dict[Value, Any], olds: list[Before]) -> Array:
    """Return whether a finite number in the outputs would not be one any more."""
    equations = [e for e in equations if e.outputs]  # not `jax.debug.print`
    makers = {x: e for e in equations for x in e.outputs}
    read = {x for e in equations for x in e.inputs}
    pairs = [(x, old) for x, old in zip(outputs, olds, strict=True) if isinstance(x, Value) and x in makers]
    made = [(x, old, makers[x]) for x, old in pairs if is_inexact(x.aval)]
    inside = lambda e: e.name == "cond" and not any(x in read or x in known for x in e.outputs)
    branching = {e: None for *_, e in made if inside(e)}
    plain = [(x, old, e) for x, old, e in made if e not in branching]
    wanted = [y for x, _, e in plain for y in (e.inputs[1:] if writes_rows(e) else [x])]
    here = dict(known)
    unknown = [e for e in equations if e.outputs[0] not in known]
    evaluate(needed(unknown, [*wanted, *(e.inputs[0] for e in branching)]), here)

    terms: dict[Any, Array] = {}
    for i, (x, old, e) in enumerate(plain):
        if writes_rows(e):
            term = _term_of_rows(_read(e.inputs[1], here), _read(e.inputs[2], here), old)
        else:
            term = _term(here[x], old.old, old.is_amount)
        key = i if old.part is None else (old.part, term.shape)
        terms[key] = terms[key] | term if key in terms else term
    lost = functools.reduce(jnp.logical_or, map(jnp.any, terms.values()), jnp.zeros((), bool))

    for e in branching:
        own = [(x, old) for x, old, maker in made if maker is e]
        branches = [functools.partial(_of_branch, equations, known, e, own, x) for x in e.params["branches"]]
        lost = lost | jax.lax.switch(_read(e.inputs[0], here), branches)
    return lost


def _of_branch(
    equations: list[Equation], known: dict[Value, Any], cond: Equation, own: list[Any], branch: Any
) -> Array:
    """Return whether a finite number in some outputs of a `cond` would not be one any more, in one of its branches.

    What the branch reads is computed inside of it (the sum of gradients), so that it is not stored either.

    Args:
        own: these outputs, and what they replace.
    """
    inner = _traced(branch)
    names: dict[Any, Any] = dict(zip(inner.inputs, cond.inputs[1:], strict=True))
    whole = [*equations, *renamed(inner.equations, names)]
    results = [inner.outputs[cond.outputs.index(x)] for x, _ in own]
    outputs = [names.get(x, x) for x in results]
    lost = _is_lost(whole, outputs, known | inner.constants, [old for _, old in own])
    # Inside `shard_map` both branches must vary over the same axes.
    axes = {axis for x in known.values() for axis in _axes(x)} - _axes(lost)
    return jax.lax.pcast(lost, tuple(axes), to="varying") if axes else lost


def _axes(x: Any) -> set[Any]:
    """Return the mapped axes over which an array varies."""
    return {*jax.typeof(x).manual_axis_type.varying}


def _read(x: Atom, known: dict[Value, Any]) -> Any:
    return x.value if isinstance(x, Constant) else known[x]


def _term(new: Array, old: Array, is_amount: bool) -> Array:
    """Return where a finite number would not be one any more."""
    if is_amount:
        new = (old.astype(new.dtype) + new).astype(old.dtype)
    return are_finite(old) & ~are_finite(new)


def _term_of_rows(numbers: Array, new: Array, old: Before) -> Array:
    """Return the term of those rows of an array that are replaced; numbers past its end are no rows."""
    numbers = numbers.reshape(-1)
    term = _term(new, rows.gather(old.old, rows.Rows(new, numbers)), old.is_amount)
    apart = jax.lax.optimization_barrier(numbers)  # else a native loop would make and read them
    exists = (apart < len(old.old)).reshape(-1, *[1] * (term.ndim - 1))
    return exists & term


def are_finite(x: Array) -> Array:
    """Return where numbers are finite as stored.

    XLA may leave out a rounding to 16 bits of a number, but not of its bits.
    """
    if jnp.iscomplexobj(x):
        return jnp.isfinite(x.real) & jnp.isfinite(x.imag)
    if x.dtype in EXPONENTS:
        exponent = jnp.uint16(EXPONENTS[x.dtype])
        return (jax.lax.bitcast_convert_type(x, jnp.uint16) & exponent) != exponent
    return jnp.isfinite(x.astype(compute_dtype(x.dtype)))


EXPONENTS = {jnp.dtype("bfloat16"): 0x7F80, jnp.dtype("float16"): 0x7C00}  # their bits
