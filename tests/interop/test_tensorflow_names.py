"""The table of TensorFlow's functions: each with TensorFlow's arguments, beside NumPy; and control flow in hooks."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxopt_keras.interop.tensorflow.keras import backend as K
from jaxopt_keras.interop.tensorflow.keras.src.optimizers import optimizer as keras_optimizer

import jaxopt_keras as jk
import jaxopt_keras.interop.tensorflow as tf
from jaxopt_keras.stateful.custom.errors import HookError

X = np.array([[1.0, 4.0, -2.0], [9.0, 16.0, 0.5]], np.float32)
S = np.array([[4.0, 1.0], [1.0, 3.0]], np.float32)
pytestmark = pytest.mark.usefixtures("jax_defaults")  # TensorFlow's code promotes

CASES = {
    "logical_or": lambda: (tf.logical_or(X > 1, X < 0), (X > 1) | (X < 0)),
    "logical_and": lambda: (tf.math.logical_and(x=X > 1, y=X < 9), (X > 1) & (X < 9)),
    "greater": lambda: (tf.greater(X, 1), X > 1),
    "equal": lambda: (tf.equal(X, 4.0), X == 4),
    "range": lambda: (tf.range(2, 8, delta=2), np.arange(2, 8, 2)),
    "tensordot": lambda: (tf.tensordot(X, X, axes=[[0], [0]]), X.T @ X),
    "gather": lambda: (tf.gather(X, [1, 0], axis=0), X[[1, 0]]),
    "gather of columns": lambda: (tf.gather(X, indices=[2], axis=1), X[:, [2]]),
    "gather_nd": lambda: (tf.gather_nd(X, [[0, 1], [1, 2]]), X[[0, 1], [1, 2]]),
    "expand_dims": lambda: (tf.expand_dims(X, axis=-1), X[..., None]),
    "fill": lambda: (tf.fill([2, 2], 3.0), np.full((2, 2), 3.0)),
    "reduce_std": lambda: (tf.math.reduce_std(X, axis=1), X.std(1)),
    "reduce_variance": lambda: (tf.math.reduce_variance(X), X.var()),
    "reduce_prod": lambda: (tf.reduce_prod(X, axis=[0, 1], keepdims=True), X.prod(keepdims=True)),
    "eye": lambda: (tf.eye(2, num_columns=3), np.eye(2, 3)),
    "real": lambda: (tf.math.real(X), X),
    "norm": lambda: (tf.linalg.norm(X), np.sqrt((X * X).sum())),
    "norm of a vector": lambda: (tf.norm(X, ord=2), np.sqrt((X * X).sum())),  # not the spectral norm of NumPy
    "norm of rows": lambda: (tf.norm(X, ord=1, axis=1, keepdims=True), np.abs(X).sum(1, keepdims=True)),
    "norm of a matrix": lambda: (tf.norm(X, axis=[0, 1], ord="fro"), np.linalg.norm(X)),
    "is_nan": lambda: (tf.math.is_nan([1.0, np.nan]), [False, True]),
    "matmul": lambda: (tf.matmul(X, X, transpose_b=True), X @ X.T),
    "divide_no_nan": lambda: (tf.math.divide_no_nan(X, [0.0, 2.0, 4.0]), X / [np.inf, 2, 4]),
    "clip_by_value": lambda: (tf.clip_by_value(X, clip_value_min=0.0, clip_value_max=5.0), X.clip(0, 5)),
    "clip_by_norm": lambda: (tf.clip_by_norm(X, 2.0), X * 2 / np.linalg.norm(X)),
    "clip_by_global_norm": lambda: (tf.clip_by_global_norm([X], 2.0)[0][0], X * 2 / np.linalg.norm(X)),
    "l2_normalize": lambda: (tf.math.l2_normalize(X, axis=1), X / np.linalg.norm(X, axis=1, keepdims=True)),
    "argsort": lambda: (tf.argsort(X, direction="DESCENDING"), np.argsort(-X)),
    "unstack": lambda: (tf.unstack(X, axis=1)[1], X[:, 1]),
    "slice": lambda: (tf.slice(X, [0, 1], [-1, 2]), X[:, 1:]),
    "one_hot": lambda: (tf.one_hot([1, 0], depth=3), np.eye(3)[[1, 0]]),
    "shape": lambda: (tf.shape(X)[1] * 2, 6),
    "rank": lambda: (tf.rank(X), 2),
    "concat": lambda: (tf.concat(values=[X, X], axis=1), np.concatenate([X, X], 1)),
    "where": lambda: (tf.where(X > 3), np.argwhere(X > 3)),
    "tensor_scatter_nd_update": lambda: (tf.tensor_scatter_nd_update(X, [[1]], np.zeros((1, 3))), X * [[1], [0]]),
    "add_n": lambda: (tf.add_n([X, X, X]), 3 * X),
    "band_part": lambda: (tf.linalg.band_part(S, 0, -1), np.triu(S)),
    "diag_part": lambda: (tf.linalg.diag_part(S), np.diag(S)),
    "matrix_transpose": lambda: (tf.linalg.matrix_transpose(X), X.T),
    "cholesky": lambda: (tf.linalg.cholesky(S), np.linalg.cholesky(S)),
    "eigh": lambda: (tf.linalg.eigh(S)[0], np.linalg.eigh(S)[0]),
    "triangular_solve": lambda: (tf.linalg.triangular_solve(np.tril(S), S), np.linalg.solve(np.tril(S), S)),
    "softsign": lambda: (tf.nn.softsign(X), X / (1 + np.abs(X))),
    "moments": lambda: (tf.nn.moments(X, axes=[0])[1], X.var(0)),
    "cast to int": lambda: (tf.cast(X, tf.int64), X.astype(int)),
    "while_loop": lambda: (tf.while_loop(lambda i, x: i < 3, lambda i, x: (i + 1, x * 2), [0, 1.0])[1], 8.0),
    "K.sum": lambda: (K.sum(X, axis=0), X.sum(0)),
    "K.clip": lambda: (K.clip(X, 0, 1), X.clip(0, 1)),
    "K.epsilon": lambda: (K.epsilon(), 1e-7),
    "keras.ops fills a gap": lambda: (tf.math.top_k(np.array([1.0, 3.0, 2.0]), 2)[0], [3, 2]),
    "initializers": lambda: (tf.keras.initializers.Constant(2.0)((2,), "float32"), [2, 2]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_functions_are_tensorflow_s(name):
    found, right = CASES[name]()
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(right, float), rtol=1e-5, atol=1e-6)


def test_svd_and_qr_return_what_tensorflow_does():
    s, u, v = tf.linalg.svd(X)
    np.testing.assert_allclose(u @ np.diag(s) @ v.T, X, atol=1e-5)
    q, r = tf.linalg.qr(X.T)
    np.testing.assert_allclose(q @ r, X.T, atol=1e-5)


def test_modules_can_be_imported_by_their_old_paths():
    assert keras_optimizer.Optimizer is jk.Optimizer is tf.keras.optimizers.legacy.Optimizer
    assert K.is_sparse(tf.IndexedSlices(X, [0, 1])) and not K.is_sparse(X)


def test_legacy_arguments():
    adam, sgd, w = (
        tf.keras.optimizers.legacy.Adam(lr=0.5),
        tf.keras.optimizers.legacy.SGD(lr=1.0, decay=1.0),
        tf.Variable(0.0),
    )
    assert float(adam.learning_rate) == 0.5 and isinstance(adam, jk.Adam)
    seen = []
    for _ in range(3):
        before = float(w)
        sgd.apply_gradients([(tf.constant(1.0), w)])
        seen.append(before - float(w))
    np.testing.assert_allclose(seen, [1, 1 / 2, 1 / 3], rtol=1e-6)
    halved = tf.keras.optimizers.legacy.SGD(1.0, gradient_transformers=[lambda pairs: [(g / 2, v) for g, v in pairs]])
    w = tf.Variable(0.0)
    halved.apply_gradients([(tf.constant(1.0), w)])
    assert float(w) == -0.5


class Conditional(keras_optimizer.Optimizer):
    """Branches that assign variables, and return arrays."""

    def build(self, variables):
        super().build(variables)
        self.m = [tf.Variable(tf.zeros_like(v)) for v in variables]
        for v in self.m:
            self._track_variable(v)

    @tf.function
    def update_step(self, gradient, variable, learning_rate):
        m = self.m[self._get_variable_index(variable)]
        step = tf.cast(self.iterations + 1, variable.dtype)

        def first():
            m.assign(gradient)
            return tf.zeros_like(gradient)

        def later():
            m.assign(m * 0.5 + gradient)
            return tf.cond(tf.reduce_sum(gradient) > 0, lambda: m * 1.0, lambda: -gradient)

        update = tf.cond(step <= 2, first, later)
        assert update.shape.as_list() == variable.shape.as_list() and update.shape.rank == 1
        assert gradient.dtype.base_dtype == tf.float32
        variable.assign_sub(update * learning_rate, use_locking=True, read_value=False)


@pytest.mark.parametrize("compiled", [True, False])
def test_branches_may_assign(compiled):
    optimizer, w = Conditional(0.5, jit_compile=compiled), tf.Variable([1.0, 2.0], name="w")
    p, m = np.array([1.0, 2.0]), np.zeros(2)
    for i in range(6):
        g = np.random.default_rng(i).normal(size=2)
        optimizer.apply_gradients([(tf.constant(g, tf.float32), w)])
        m = g if i < 2 else m * 0.5 + g
        p = p - 0.5 * (0 if i < 2 else (m if g.sum() > 0 else -g))
        np.testing.assert_allclose(w.numpy(), p, rtol=1e-5)
    np.testing.assert_allclose(optimizer.m[0].numpy(), m, rtol=1e-5)
    assert len(optimizer.variables) == 3


@pytest.mark.parametrize(
    ("branches", "text"),
    [
        ((lambda: tf.zeros(2), lambda: tf.zeros(3)), "return different structures or shapes"),
        ((lambda: tf.zeros(2), lambda: 1 / 0), "raises an error when it is traced: ZeroDivisionError"),
    ],
)
def test_branches_that_cannot_be_compiled(branches, text):
    class Wrong(keras_optimizer.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            tf.cond(tf.reduce_sum(gradient) > 0, *branches)

    with pytest.raises(HookError, match=f"{text}.*jit_compile=False"):
        Wrong(0.1).apply_gradients([(tf.ones(2), tf.Variable([1.0, 2.0]))])


def test_random_numbers_differ_from_step_to_step():
    class Noise(keras_optimizer.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign(tf.random.normal(variable.shape, stddev=2.0))

    optimizer, w, seen = Noise(0.1), tf.Variable([0.0, 0.0]), []
    for _ in range(3):
        optimizer.apply_gradients([(tf.ones(2), w)])
        seen += w.numpy().tolist()
    assert len({*seen}) == 6
    assert (
        0.5 < np.std(tf.random.normal([1000], stddev=2.0)) < 3
        and tf.random.uniform([3], 1, 5, tf.int32).dtype == tf.int32
    )


def test_functions_in_a_gradient():
    x = jnp.asarray(X)
    np.testing.assert_allclose(jax.grad(lambda x: tf.reduce_sum(tf.square(x)))(x), 2 * X)


def test_modules_have_no_files_that_are_functions():
    """Tools read `__file__` of every module in `sys.modules`; `jax.numpy` has one."""
    namespaces = [m for name, m in [*sys.modules.items()] if name.startswith("jaxopt_keras.interop.tensorflow.")]
    assert namespaces and all(isinstance(getattr(m, "__file__", ""), str) for m in namespaces)


ROWS, PLACES = [2, 0], [[0, 1], [2, 0]]
PLACED = ("add", "sub", "update")  # those with coordinates, `scatter_nd_add` and so on
SCATTERS = {
    "add": lambda x, i, y: np.add.at(x, i, y),
    "sub": lambda x, i, y: np.subtract.at(x, i, y),
    "mul": lambda x, i, y: np.multiply.at(x, i, y),
    "div": lambda x, i, y: np.divide.at(x, i, y),
    "min": lambda x, i, y: np.minimum.at(x, i, y),
    "max": lambda x, i, y: np.maximum.at(x, i, y),
    "update": lambda x, i, y: x.__setitem__(i, y),
}


@pytest.mark.parametrize("name", SCATTERS)
def test_rows_and_places_of_a_variable_are_changed_as_in_tensorflow(name):
    start = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    values, expected = np.array([[3.0, 2.0], [0.5, 4.0]], np.float32), start.copy()
    v = jk.Variable(start)
    getattr(v, f"scatter_{name}")(jk.IndexedSlices(jnp.asarray(values), jnp.array(ROWS), (3, 2)))
    SCATTERS[name](expected, ROWS, values)
    np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6)
    if name in PLACED:
        v, expected = jk.Variable(start), start.copy()
        getattr(v, f"scatter_nd_{name}")(PLACES, np.array([5.0, 7.0], np.float32))
        SCATTERS[name](expected, tuple(np.transpose(PLACES)), np.array([5.0, 7.0], np.float32))
        np.testing.assert_allclose(v.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", SCATTERS)
def test_a_hook_changes_rows_and_places_by_constants(name):
    start, values = np.arange(1, 7, dtype=np.float32).reshape(3, 2), np.array([[3.0, 2.0], [0.5, 4.0]], np.float32)

    class Scatters(tf.keras.optimizers.Optimizer):
        def __init__(self):
            super().__init__("Scatters")
            self._set_hyper("learning_rate", 1.0)

        def _create_slots(self, var_list):
            for var in var_list:
                self.add_slot(var, "start", initializer=tf.keras.initializers.Constant(start))

        def _resource_apply_dense(self, grad, var, apply_state=None):
            slot = self.get_slot(var, "start")
            rows = tf.IndexedSlices(tf.constant(values) + 0 * slot[:2], tf.constant(ROWS))
            getattr(slot, f"scatter_{name}")(rows)
            if name in PLACED:
                getattr(slot, f"scatter_nd_{name}")(tf.constant(PLACES), tf.constant([5.0, 7.0]) + 0 * slot[0])
            return var.assign(slot.value() + 0 * var.value())

    expected, w = start.copy(), jk.Variable(np.zeros((3, 2), np.float32))
    SCATTERS[name](expected, ROWS, values)
    if name in PLACED:
        SCATTERS[name](expected, tuple(np.transpose(PLACES)), np.array([5.0, 7.0], np.float32))
    Scatters().apply_gradients([(jnp.ones((3, 2)), w)])
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-6)
