"""The native loops are made from the rule's own equations: they give what XLA gives for them.

Most operations are the same ones, to the bit. Where XLA contracts or orders them in another way, either may be nearer
to the exact number: the loops are at most two units in the last place farther from it than XLA is, or, where a
difference of two nearly equal numbers magnifies rounding for both, twice as far. (Of a thousand elements one does not
count: a difference of numbers so nearly equal that either program is off by chance.) What is not finite is so in the
same places.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.engine.slot_storage import Stored, dequantize
from tests.laws.cases import PLAIN_KINDS, SWITCHED, draw, few_cases, gradients, pairs, run, slots_at

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

SHAPES = {"w": (33, 128), "half": (64, 80)}
CODED = SHAPES | {"x": (40, 128)}  # two arrays of one kind, since each is rounded with draws of its own
AWKWARD = {"w": (33, 128), "b": (17,), "one": (1,), "scalar": (), "empty": (0, 3)}
STRANGE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-41, -1e-41, 3e38]
CLIPS = [{}, {"clipnorm": 0.5}, {"global_clipnorm": 0.5}, {"clipvalue": 0.01, "use_ema": True}]


def strange(grads):
    """Gradients with numbers at the edges in them; not all arrays, since a norm spreads them."""
    w = np.array(grads["w"])
    w[3, :8] = STRANGE
    return grads | {"w": jnp.asarray(w)}


def error(found, exact, old):
    """The greatest error but for one in a thousand, in last places of the result or, if larger, of the old value."""
    size = np.maximum(np.abs(exact), np.abs(old))
    info = np.finfo(np.float32)
    place = np.spacing(np.clip(size, info.tiny, info.max / 4).astype(np.float32)).astype(float)
    finite = np.isfinite(exact) & np.isfinite(found)
    errors = np.sort(np.where(finite, np.abs(found - np.where(finite, exact, 0)) / place, 0), axis=None)
    return errors[-1 - errors.size // 1000] if errors.size else 0


def wide(tree):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, float)) if floating(x) else x, tree)


LAST_VARIANTS = [case for case in SWITCHED if case.rule.variant == case.rule.variants[-1]]  # below are the first ones


@pytest.mark.parametrize("number,case", [*enumerate(LAST_VARIANTS)], ids=str)
def test_as_near_to_the_exact_step(number, case):
    check(case.in_large_blocks, CLIPS[number % len(CLIPS)], SHAPES)


@few_cases
def test_arrays_of_few_elements(case):
    check(case, {}, AWKWARD)


def check(case, options, shapes):
    kernels = {engine: case.kernel(engine=engine, **options) for engine in ("auto", "xla")}
    if case.rule.grain != "matrix":
        engines = {path: g.kind.engine for g in kernels["auto"].describe(draw(shapes, 0)).groups for path in g.paths}
        assert all(engines[path] == "native" for path in ("w", "half", "b") if path in shapes)
    params, state = run(kernels["xla"], draw(shapes, 0), gradients(2, shapes))
    for g in (draw(shapes, 9, scale=0.1), strange(draw(shapes, 9, scale=0.1))):
        found, expected = (k.step(params, state, g, donate=False) for k in kernels.values())
        with jax.enable_x64(True):
            exact = kernels["xla"].step(wide(params), wide(state), wide(g), donate=False)
        old = jax.tree.leaves((params, state))
        for (path, a, b), c, o in zip(pairs(found, expected), jax.tree.leaves(exact), old, strict=True):
            a, b, c, o = (np.asarray(x, float) for x in (a, b, c, o))
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b), err_msg=path)
            np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=path)
            ties = 2**16 if "half" in path else 0  # one last place before can be one of bfloat16 after
            assert error(a, c, o) <= 2 + 2 * error(b, c, o) + ties, path


TWO = [case for case in PLAIN_KINDS if type(case.rule).__name__ in ("Adam", "Lamb")]


@pytest.mark.parametrize(
    "form,case",
    [("int8", c) for c in PLAIN_KINDS] + [(f, c) for f in ("int4", "bfloat16", "float16") for c in TWO],
    ids=str,
)
def test_stored_in_the_same_codes(case, form):
    options = {"state_dtype": form, "rounding": "stochastic", "master_weights": "bf16+8"}
    native, xla = (case.kernel(engine=engine, **options) for engine in ("auto", "xla"))
    params = draw(CODED, 0)
    state = xla.init(params)
    for g in gradients(3, CODED):
        (found, mine), (params, state) = (k.step(params, state, g, donate=False) for k in (native, xla))
        for path, a, b in pairs(*(shown(*x) for x in ((native, found, mine), (xla, params, state)))):
            # One last place before it is rounded can be one code after it: seldom.
            a, b = (x.astype(float) for x in (a, b))
            assert np.sum(np.abs(a - b) > 1e-5 * np.max(np.abs(b), initial=0)) <= 1e-3 * b.size + 1, path


def shown(kernel, params, state):
    """Return the stored parameters, in the dtype of the arithmetic."""
    return {k: dequantize(kernel.options, Stored(p, slots_at(state, k)), jnp.float32) for k, p in params.items()}
