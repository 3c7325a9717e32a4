"""Rules that decompose matrices: those of all arrays in one `cond`, and each device decomposes its share."""

import contextlib
import re
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.language import Exact, Rate, Rule
from jaxopt_keras.pure import sharding
from tests.laws.cases import draw

P = PartitionSpec


class Roots(Rule):
    """A user's rule: a basis for each matrix, found every second step."""

    grain: ClassVar = "matrix"
    shapes: ClassVar = ((2, 2),)
    learning_rate: Rate = 0.1

    class State(NamedTuple):
        basis: Exact

    def init(self, p):
        return self.State(jnp.zeros((p.shape[0], p.shape[0]), p.dtype))

    def update(self, g, p, s, at):
        apart = jnp.diag(jnp.arange(p.shape[0], dtype=p.dtype))  # no two eigenvalues are equal
        found = lambda: jnp.linalg.eigh(jnp.matmul(g, g.T, precision="highest") + apart)[1]
        basis = jax.lax.cond(at.t % 2 == 1, found, lambda: s.basis)
        return -at.lr * jnp.matmul(basis**2, g, precision="highest"), self.State(basis)


KERNELS = {
    "soap": lambda: jk.soap(0.01, precondition_frequency=2),
    "kl": lambda: jk.soap(0.01, precondition_frequency=2, kl=True),
    "shampoo": lambda: jk.shampoo(0.01, precondition_frequency=2),
    "galore": lambda: jk.galore(0.01, rank=4, update_proj_gap=2),
    "dion": lambda: jk.dion(0.01, rank_fraction=0.25),
    "kron": lambda: jk.kron(0.01),
    "own": lambda: jk.Kernel(Roots()),
    "cautious": lambda: jk.cautious(jk.soap(0.01, precondition_frequency=2)),
}
SHAPES = {f"w{i}": (16, 8) for i in range(3)} | {f"v{i}": (8, 8) for i in range(2)}


def trained(kernel, params, grads):
    state, step = jax.jit(kernel.init)(params), jax.jit(kernel.step)
    for g in grads:
        params, state = step(params, state, g)
    return params


def hlo(kernel, params) -> Any:
    return jax.jit(kernel.step).lower(params, jax.jit(kernel.init)(params), params).compile().as_text()


def conditionals(text):
    """Count conditionals."""
    return len(re.findall(r" conditional\(", text))


def decompositions(text):
    return len(re.findall(r'custom_call_target="lapack_\w*(?:syevd|geqrf|gesdd)', text))


@pytest.mark.parametrize("name", ["soap", "shampoo", "galore", "own"])
def test_one_branch_without_loops_for_many_arrays(name):
    """XLA would take long to compile a loop over the matrices."""
    one, many = (hlo(KERNELS[name](), draw({f"w{i}": (16, 8) for i in range(n)}, 0)) for n in (1, 20))
    assert conditionals(many) == 1 and not re.search(r" while\(", many)
    assert decompositions(many) == 20 * decompositions(one) > 0


EVERYWHERE = [(name, P("data"), AxisType.Auto, False) for name in KERNELS]
EVERYWHERE += [(name, P("data"), AxisType.Explicit, True) for name in ("soap", "shampoo", "galore", "dion", "own")]
EVERYWHERE += [(name, P(), AxisType.Auto, True) for name in ("soap", "own")]
EVERYWHERE += [(name, P(None, "data"), AxisType.Explicit, False) for name in ("soap", "shampoo", "own")]


@pytest.mark.parametrize("name, spec, kind, is_set", EVERYWHERE)
@pytest.mark.usefixtures("x64")
def test_many_devices_equal_one(name, spec, kind, is_set):
    """In float64: elements near 0 in an eigenbasis enlarge rounding errors."""
    drawn = [jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), draw(SHAPES, i)) for i in range(4)]
    kernel, (params, *grads) = KERNELS[name](), drawn
    expected = trained(kernel, params, grads)
    m = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(m) if is_set else contextlib.nullcontext():
        params, *grads = jax.device_put([params, *grads], NamedSharding(m, spec))
        after = trained(kernel, params, grads)
    for path, x in expected.items():
        np.testing.assert_allclose(after[path], x, rtol=0, atol=1e-11, err_msg=path)
        assert after[path].sharding.is_equivalent_to(NamedSharding(m, spec), 2)


@pytest.mark.parametrize("name, gathers", {"soap": 4, "shampoo": 2, "galore": 2, "own": 2}.items())
def test_each_device_decomposes_its_share(name, gathers):
    """Of eight matrices one, and copies of all results come by one gather for each size and kind."""
    kernel, m = KERNELS[name](), jax.make_mesh((8,), ("data",))
    params = draw({f"w{i}": (16, 16) for i in range(4)} | {f"v{i}": (8, 8) for i in range(4)}, 0)
    text = hlo(kernel, jax.device_put(params, NamedSharding(m, P())))
    assert conditionals(text) == 1 and decompositions(text) == gathers
    found = sharding.collectives(text)
    assert [c.kind for c in found] == ["all-gather"] * gathers and not any(c.in_loop for c in found)


def test_arrays_of_other_times_have_branches_of_their_own():
    params = draw(SHAPES, 0)
    kernel = jk.Kernel(Roots(), jk.Options(own_counts=True))
    assert conditionals(hlo(kernel, params)) >= len(SHAPES)
    state, step = kernel.init(params), jax.jit(kernel.step)
    grads = {path: g if path == "w0" else None for path, g in draw(SHAPES, 1).items()}
    _, state = step(params, state, grads)
    assert jnp.any(state.slots["basis"]["w0"]) and not jnp.any(state.slots["basis"]["w1"])


def test_many_batches_at_once_do_not_wait_for_each_other():
    """Batched calls of LAPACK do, with as many of them as threads."""
    shapes = {f"w{i}": (4 + i, 20 + i) for i in range(12)}
    kernel = jk.shampoo(0.01, max_preconditioner_dim=4)
    jax.block_until_ready(trained(kernel, draw(shapes, 0), [draw(shapes, 1)]))
