"""How public JAX programs use an optimizer: each pattern once, with optax's optimizer and with ours in its place.

The patterns are those of flax's examples, nanodo, PureJaxRL, the JAX cookbook, numpyro, optimistix, MaxText and t5x. A
program is a function of a library (`Library`); `alike` makes a test of it: what it returns is the same for both.
`test_clients_state.py` has what programs do to a state and ask of an optimizer.
"""

import functools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import jax_utils, linen, nnx
from flax.training import dynamic_scale, train_state
from jax.sharding import NamedSharding, PartitionSpec
from optax import tree_utils

from tests.pure.clients import OURS, PARAMS, THEIRS, X, Y, alike, loss_of, mesh, near, slot, trained

pytestmark = pytest.mark.usefixtures("jax_defaults")  # the libraries' own arithmetic needs implicit promotion


# ---------------------------------------------------------------------------------------------------------------------
# Flax


class Net(linen.Module):
    """Two layers, whose parameters are boxed with the names of mesh axes if `axes` are given."""

    axes: tuple[Any, ...] = ()

    @linen.compact
    def __call__(self, x):
        init = linen.initializers.lecun_normal()
        boxed = linen.with_partitioning(init, self.axes) if self.axes else init
        return linen.Dense(2)(jnp.tanh(linen.Dense(8, kernel_init=boxed)(x)))


def net_loss(params, x=X, y=Y):
    return jnp.mean((Net().apply({"params": params}, x) - y) ** 2)


def linen_state(tx, net=None):
    params = (net or Net()).init(jax.random.key(0), X)["params"]
    return train_state.TrainState.create(apply_fn=Net().apply, params=params, tx=tx)


@alike
def test_linen_train_state(library):
    state = linen_state(library.adamw(optax.cosine_decay_schedule(0.05, 10)))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(net_loss)(state.params)), donate_argnums=0)
    for _ in range(4):
        state = step(state)
    return state.params, state.step


@alike
def test_nnx_optimizer_moved_to_a_mesh(library):
    """The whole of model and optimizer is taken as one state, put onto a mesh and written back."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, library.adam(0.05), wrt=nnx.Param)
    state = nnx.state((model, optimizer))
    nnx.update((model, optimizer), jax.device_put(state, NamedSharding(mesh(), PartitionSpec())))

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model))

    for _ in range(3):
        step(model, optimizer)
    assert len(jax.tree.leaves(optimizer.opt_state)) == 5  # a count, and two slots of two parameters
    return jax.device_get(nnx.to_pure_dict(nnx.state(model)))


@alike
def test_dynamic_scale_chooses_between_states(library):
    """A step whose gradients overflowed is undone by `where` over all leaves of two states."""
    state, scale = linen_state(library.adam(0.05)), dynamic_scale.DynamicScale(growth_interval=2)

    @jax.jit
    def step(state, scale, factor):
        scale, finite, _, grads = scale.value_and_grad(lambda p: factor * net_loss(p))(state.params)
        new = state.apply_gradients(grads=grads)
        chosen = functools.partial(jax.tree.map, functools.partial(jnp.where, finite))
        kept = {"params": chosen(new.params, state.params), "opt_state": chosen(new.opt_state, state.opt_state)}
        return new.replace(**kept), scale

    for factor in (1.0, 1e38, 1.0, 1.0):
        state, scale = step(state, scale, jnp.float32(factor))
    return state.params, scale.scale, slot(state.opt_state, "count")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pmap's
@alike
def test_pmap_of_a_replicated_state(library):
    state = jax_utils.replicate(linen_state(library.adam(optax.linear_schedule(0.1, 0.0, 8))))

    def step(state, x, y):
        grads = jax.lax.pmean(jax.grad(net_loss)(state.params, x, y), "batch")
        return state.apply_gradients(grads=grads)

    step = jax.pmap(step, axis_name="batch")
    for _ in range(3):
        state = step(state, X[:, None], Y[:, None])
    return jax_utils.unreplicate(state).params


# ---------------------------------------------------------------------------------------------------------------------
# Shardings of a state


@alike
def test_fsdp_by_boxes(library):
    """Flax's boxes tell the axes of the parameters, and in the state those of the slots."""
    devices = mesh()
    make = lambda: linen_state(library.adamw(0.05), Net(axes=(None, "data")))
    specs = linen.get_partition_spec(jax.eval_shape(make))
    shardings = jax.tree.map(lambda spec: NamedSharding(devices, spec), specs)
    state = linen.unbox(jax.jit(make, out_shardings=shardings)())

    @functools.partial(jax.jit, in_shardings=(linen.unbox(shardings),), out_shardings=linen.unbox(shardings))
    def step(state):
        return state.apply_gradients(grads=jax.grad(net_loss)(state.params))

    state = step(step(state))
    moments = slot(state.opt_state, library.first)
    for tree in (state.params, moments):
        assert tree["Dense_1"]["kernel"].sharding.shard_shape((3, 8)) == (3, 1)
    return state.params, moments


SPECS = {
    "dense": {"kernel": PartitionSpec(None, "data"), "bias": PartitionSpec("data")},
    "out": {"kernel": PartitionSpec("data", None)},
}


@pytest.mark.parametrize("chained", [False, True])
def test_fsdp_by_the_specs_of_the_parameters(chained):
    """The state's shapes are known from `eval_shape`, the places of its slots from `tree_map_params`."""
    devices = mesh()
    place = lambda spec: NamedSharding(devices, spec)

    def run(library):
        tx = library.adam(0.05)
        tx = optax.chain(optax.clip_by_global_norm(1.0), tx) if chained else tx
        shapes, everywhere = jax.eval_shape(tx.init, PARAMS), place(PartitionSpec())
        placed = tree_utils.tree_map_params(
            tx, lambda _, spec: place(spec), shapes, SPECS, transform_non_params=lambda _: everywhere
        )
        params = jax.device_put(PARAMS, jax.tree.map(place, SPECS))
        state = jax.jit(tx.init, out_shardings=placed)(params)
        params, state = trained(tx, params, state)
        for name in (library.first, library.second):
            same_place = lambda x, spec: x.sharding.is_equivalent_to(place(spec), x.ndim)
            assert jax.tree.all(jax.tree.map(same_place, slot(state, name), SPECS))
        return params, slot(state, library.first)

    near(run(OURS), run(THEIRS))


def test_rules_for_the_paths_of_a_state():
    """t5x's way: regular expressions for paths, and a table from the type of a state to a function for its fields."""
    rules = [("dense/kernel$", ("embed", "mlp")), ("out/kernel$", ("mlp", "embed")), ("bias$", ("mlp",)), ("", ())]
    state = OURS.adam(0.1).init(PARAMS)

    def axes(key, _):
        path = jax.tree_util.keystr(key, simple=True, separator="/")
        return next(axes for pattern, axes in rules if re.search(pattern, path))

    by_path = jax.tree_util.tree_map_with_path(axes, state)
    of_params = jax.tree_util.tree_map_with_path(axes, PARAMS)
    table = {type(state): lambda s: s._replace(count=(), slots=dict.fromkeys(s.slots, of_params))}
    assert by_path == table[type(state)](state)
    assert by_path.slots == {"momentum": of_params, "velocity": of_params}


# ---------------------------------------------------------------------------------------------------------------------
# Loops


@alike
def test_multi_steps_over_a_chain(library):
    tx = optax.MultiSteps(optax.chain(optax.clip_by_global_norm(0.1), library.adamw(0.05)), every_k_schedule=3)

    @jax.jit
    def run(params, state):
        def micro_step(carry, i):
            params, state = carry
            grads = jax.grad(loss_of)(params, X + 0.1 * i, Y)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), tx.has_updated(state)

        return jax.lax.scan(micro_step, (params, state), jnp.arange(7.0))

    (params, state), emitted = run(PARAMS, tx.init(PARAMS))
    return params, state.gradient_step, emitted


def reinforced(make, seed):
    """PureJaxRL's three nested scans: updates of epochs of minibatches, with everything in a `TrainState`."""

    def minibatch(state, i):
        x, y = jnp.roll(X, i, 0)[:4], jnp.roll(Y, i, 0)[:4]
        return state.apply_gradients(grads=jax.grad(net_loss)(state.params, x, y)), None

    epoch = lambda state, _: jax.lax.scan(minibatch, state, jnp.arange(2))
    update = lambda state, _: jax.lax.scan(epoch, state, None, length=2)
    params = Net().init(jax.random.key(seed), X)["params"]
    state = train_state.TrainState.create(apply_fn=Net().apply, params=params, tx=make())
    return jax.lax.scan(update, state, None, length=2)[0].params


SEEDS, RATES = jnp.arange(3), jnp.array([0.01, 0.1])


@alike
def test_nested_scans_with_seeds(library):
    make = lambda: optax.chain(optax.clip_by_global_norm(0.5), library.adam(lambda t: 0.05 * (1 - t / 16)))
    return jax.jit(jax.vmap(functools.partial(reinforced, make)))(SEEDS)


@alike
def test_nested_scans_with_swept_rates(library):
    """The rate is a tracer when the optimizer is made."""

    def run(rate, seed):
        return reinforced(lambda: optax.chain(optax.clip_by_global_norm(0.5), library.adam(rate)), seed)

    return jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(RATES, SEEDS)


@alike
def test_nested_scans_with_injected_rates(library):
    def run(rate):
        return reinforced(lambda: optax.inject_hyperparams(lambda learning_rate: library.adam(learning_rate))(rate), 0)

    return jax.jit(jax.vmap(run))(RATES)


def test_rates_in_the_state_are_swept_by_vmap():
    """Our own `inject_hyperparams`: one kernel, and a state for each rate."""
    kernel = OURS.adam(0.5, inject_hyperparams=["learning_rate"])

    def run(rate):
        state = kernel.replaced(kernel.init(PARAMS), learning_rate=rate)
        return trained(kernel, state=state)[0]

    near(jax.vmap(run)(RATES), jax.vmap(lambda rate: trained(THEIRS.adam(rate))[0])(RATES))


@alike
def test_references(library):
    """The JAX cookbook's way: parameters and state are mutable arrays."""
    tx = library.adam(0.05)
    params, state = (jax.tree.map(jax.new_ref, tree) for tree in (PARAMS, tx.init(PARAMS)))

    @jax.jit
    def step(params, state):
        read = lambda refs: jax.tree.map(lambda ref: ref[...], refs)
        values = read(params)
        updates, new = tx.update(jax.grad(loss_of)(values), read(state), values)
        written = (optax.apply_updates(values, updates), new)
        jax.tree.map(lambda ref, x: ref.__setitem__(..., x), (params, state), written)

    for _ in range(3):
        step(params, state)
    return jax.tree.map(lambda ref: ref[...], params)


@alike
def test_variational_inference(library):
    """numpyro's way: only a transformation is an optimizer, its state goes through `scan`, a bad step is skipped."""
    tx = library.adam(0.05)
    assert isinstance(tx, optax.GradientTransformation)
    init, update = tx
    start = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}

    def elbo(params, key):
        noise = jax.random.normal(key, (4, 2))
        z = params["loc"] + jnp.exp(params["log_scale"]) * noise
        return jnp.mean(jnp.sum((z - 1.0) ** 2, -1)) - jnp.sum(params["log_scale"])

    @jax.jit
    def run(key):
        def stable_update(carry, i):
            _, (params, state), key = carry
            key, draw = jax.random.split(key)
            loss, grads = jax.value_and_grad(elbo)(params, draw)
            loss = jnp.where(i == 2, jnp.nan, loss)

            def move():
                updates, moved = update(grads, state, params)
                return optax.apply_updates(params, updates), moved

            kept = jax.lax.cond(jnp.isfinite(loss), move, lambda: (params, state))
            return (i, kept, key), loss

        (_, (params, _), _), losses = jax.lax.scan(stable_update, (0, (start, init(start)), key), jnp.arange(6))
        return params, losses

    return run(jax.random.key(1))


class Minimiser(eqx.Module):
    """optimistix's way: a transformation is the field of a module, and gets `value`, `grad` and `value_fn`."""

    optim: optax.GradientTransformation

    def __call__(self, fn, y):
        def keep_going(carry):
            return (carry[2] > 1e-3) & (carry[3] < 50)

        def step(carry):
            y, state, _, count = carry
            value, grads = jax.value_and_grad(fn)(y)
            updates, state = self.optim.update(grads, state, y, value=value, grad=grads, value_fn=fn)
            return optax.apply_updates(y, updates), state, optax.tree.norm(grads), count + 1

        y, _, _, count = jax.lax.while_loop(keep_going, step, (y, self.optim.init(y), jnp.inf, 0))
        return y, count


@alike
def test_minimiser(library):
    target = jnp.array([1.0, -0.5])
    minimise = Minimiser(library.sgd(0.1))
    fn = lambda y: jnp.sum((y - target) ** 2)
    closure = lambda y: minimise(fn, y)  # what it closes over becomes a pytree, the optimizer with it
    return eqx.filter_jit(eqx.internal.closure_to_pytree(closure))(jnp.zeros(2))
