"""Programs, and all that their functions refer to, are freed with the last kernel that has them."""

import functools
import gc
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine import compiled
from jaxopt_keras.engine.cores import leafwise
from jaxopt_keras.history.measures import measured_step

PARAMS = {"w": jnp.ones(8), "b": jnp.ones(3)}


class Closed:
    """A value that a user's function refers to."""


def stepped(kernel, step=None):
    params = jax.tree.map(jnp.copy, PARAMS)
    state = kernel.init(params)
    out = (step or type(kernel).step)(kernel, params, state, PARAMS)
    kernel.update(PARAMS, *out[1::-1])
    return out


def schedule(closed):
    return lambda step: jnp.float32(0.1 + len(vars(closed)))


def constraint(closed):
    return lambda x: jnp.abs(x) + len(vars(closed))


def transformation(closed):
    return optax.chain(optax.scale_by_schedule(schedule(closed)), optax.sgd(0.1))


def minimized(optimizer, constraint=None):
    w = jk.Variable(jnp.ones(8), name="w", constraint=constraint)
    optimizer.apply([jnp.ones(8)], [w])
    return float(optimizer.iterations)


USES = {
    "schedule": lambda closed: stepped(jk.adam(schedule(closed))),
    "constraint": lambda closed: stepped(jk.adam(constraints=[("w", constraint(closed))])),
    "exclusion": lambda closed: stepped(jk.adamw(exclude_from_weight_decay=lambda path, p: bool(vars(closed)))),
    "groups": lambda closed: stepped(jk.partition({"w": jk.adam(schedule(closed))}, jk.sgd(0.1))),
    "fallback": lambda closed: stepped(jk.muon(schedule(closed))),
    "packed": lambda closed: stepped(jk.adam(schedule(closed), flat_state=True)),
    "guarded": lambda closed: stepped(jk.loss_scaled(jk.adam(schedule(closed), skip_nonfinite=True))),
    "optax": lambda closed: stepped(jk.Kernel.from_optax(transformation(closed))),
    "measures": lambda closed: stepped(jk.adam(schedule(closed)), measured_step),
    "described": lambda closed: jk.adam(schedule(closed)).describe(PARAMS),
    "stateful schedule": lambda closed: minimized(jk.Adam(schedule(closed))),
    "stateful function": lambda closed: minimized(jk.Adam(lambda: 0.1 + len(vars(closed)))),
    "stateful optax": lambda closed: minimized(jk.Optimizer.from_optax(transformation(closed))),
    "variable's constraint": lambda closed: minimized(jk.Adam(0.1), constraint(closed)),
    "wrapped": lambda closed: minimized(jk.LossScaleOptimizer(jk.Adam(schedule(closed)))),
}


@pytest.fixture
def smallest_caches(monkeypatch):
    """Caches of recent programs that hold one."""
    for module, name in (compiled, "_recent"), (leafwise, "_slot_names"):
        monkeypatch.setattr(module, name, functools.lru_cache(maxsize=1)(getattr(module, name).__wrapped__))


@pytest.mark.parametrize("use", USES)
def test_what_a_dropped_kernel_refers_to_is_freed(use, smallest_caches):
    alive = []
    for _ in range(3):
        closed = Closed()
        alive.append(weakref.ref(closed))
        USES[use](closed)
    del closed
    for number in range(2):  # other programs, which take the places in the caches
        stepped(jk.sgd(0.1, nesterov=bool(number)))
    gc.collect()
    assert [ref() is not None for ref in alive] == [False] * 3


def test_kernels_share_programs_as_long_as_one_lives_and_for_a_while_after(smallest_caches):

    class Own(jk.rules.Adam):
        """A rule that no kernel of another test has."""

    adam = lambda rate, **numbers: jk.Kernel(Own(rate, **numbers))
    kernel = adam(0.1)
    mine = kernel.compiled
    assert adam(0.2, beta_1=0.5).compiled is mine
    assert jk.sgd(0.1).compiled is not mine  # takes the place in the cache
    assert adam(0.3).compiled is mine
    jk.sgd(0.1).compiled  # noqa: B018  # takes it again
    alive = weakref.ref(mine)
    del kernel, mine
    gc.collect()
    assert alive() is None
    first = weakref.ref(adam(0.1).compiled)
    gc.collect()
    assert first() is not None and adam(0.2).compiled is first()  # made anew


def test_measures_are_compiled_once_for_equal_kernels(smallest_caches):
    traced = []

    class Counted(jk.rules.SGD):
        def update(self, g, p, s, at):
            traced.append(None)
            return super().update(g, p, s, at)

    kernels = [jk.Kernel(Counted(0.1)), jk.Kernel(Counted(0.2))]
    stepped(kernels[0], measured_step)
    stepped(jk.sgd(0.1))
    count = len(traced)
    stepped(kernels[1], measured_step)
    assert len(traced) == count


CODE = """
import gc, jax, jax.numpy as jnp, jaxopt_keras as jk

params = {"w": jnp.ones(8), "b": jnp.ones(3)}
state = jk.adam(0.1).init(params)

def megabytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

for i in range(110):
    if i == 66:
        before = megabytes()
    kernel = jk.adam(lambda step, i=i: 0.1 / (i + 1))
    kernel.step(*jax.tree.map(jnp.copy, (params, state)), params)
print(megabytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_search_over_schedules_is_bounded():
    grown = float(subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout)
    assert grown < 30
