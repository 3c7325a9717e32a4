"""Modules that an import loads in a fresh process: JAX, optax and this package only."""

import subprocess
import sys

import pytest

# `jax.experimental.sparse` imports SciPy. `jax.extend` imports Pallas, in 25 ms: the first step asks it whether a
# transformation is running.
NEVER = ("jax.experimental.sparse", "scipy")
NOT_YET = ("jax.experimental", "jax.extend", "jax._src.pallas")

IMPORT = """
import sys, jax, optax
before = set(sys.modules)
import jaxopt_keras as jk
"""
STEPS = """
import jax.numpy as jnp
kernel, optimizer = jk.adam(), jk.Adam()
params, grads = jnp.ones((3, 2)), jnp.ones((3, 2))
kernel.step(params, kernel.init(params), grads)
w = jk.Variable(jnp.ones((3, 2)))
optimizer.apply([jk.IndexedSlices(jnp.ones((1, 2)), jnp.array([2]))], [w])
"""
SHOW = "print(*sorted(set(sys.modules) - before))"

BCOO = """
import numpy as np
assert "jax.experimental.sparse" not in sys.modules
from jax.experimental.sparse import BCOO
w.assign(jnp.ones((3, 2)))
optimizer = jk.SGD(1.0)
optimizer.apply([BCOO((jnp.ones((1, 2)), jnp.array([[2]])), shape=(3, 2))], [w])
assert np.asarray(w).tolist() == [[1, 1], [1, 1], [0, 0]], w
"""


def fresh(program: str) -> list[str]:
    """The words that a program prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("steps, unneeded", [("", NEVER + NOT_YET), (STEPS, NEVER)], ids=["import", "step"])
def test_neither_the_import_nor_a_step_brings_in_what_it_does_not_need(steps, unneeded):
    new = fresh(IMPORT + steps + SHOW)
    assert "jaxopt_keras.optimizers" in new
    assert not [name for name in new if name.startswith(unneeded)]


@pytest.mark.parametrize("room", ["checkpoint", "history"])
def test_rooms_that_no_step_needs_are_imported_when_they_are_read(room):
    loaded = f"[name for name in sys.modules if name.startswith('jaxopt_keras.{room}')]"
    fresh(f"{IMPORT}{STEPS}assert not {loaded}; assert '{room}' in dir(jk)\njk.{room}.__doc__; assert {loaded}")
    fresh(f"from jaxopt_keras import {room}; import jaxopt_keras.{room}")
    fresh("import jaxopt_keras as jk\ntry: jk.absent\nexcept AttributeError as e: assert \"'absent'\" in str(e)")


def test_no_other_room_is_imported():
    """A room that every import loads costs every program its time: checkpoints, histories and bridges load later."""
    rooms = {name.split(".")[1] for name in fresh(IMPORT + STEPS + SHOW) if name.startswith("jaxopt_keras.")}
    faces = {"pure", "stateful", "optimizers"}
    older_paths = {"numerics", "rule", "sharding"}
    assert rooms == {"language", "rules", "schedules", "storage", "packing", "engine"} | faces | older_paths


def test_the_import_brings_in_no_other_library():
    others = {name.split(".")[0] for name in fresh(IMPORT + SHOW)} - sys.stdlib_module_names
    assert others <= {"jaxopt_keras", "jax"}


def test_a_bcoo_is_known_although_its_module_was_imported_later():
    fresh(IMPORT + STEPS + BCOO)
