"""Parameter groups and loss scaling of the pure face."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxopt_keras as jk
from jaxopt_keras.engine.programs.loss_scaled import GOOD, SCALE
from jaxopt_keras.engine.stages.guard import SKIPPED
from tests.laws.cases import assert_close, assert_same_bits, draw, run, slots_at, types

SHAPES = {"embed": (5, 2), "dense": {"kernel": (4, 3), "bias": (3,)}, "out": [(3,), ()]}
PARAMS, GRADS = draw(SHAPES, 0), [draw(SHAPES, i) for i in range(1, 5)]
KERNELS = {"embed": jk.frozen(), "bias$|out": jk.sgd(0.1, momentum=0.9, gradient_accumulation_steps=2)}
DEFAULT = jk.adamw(0.01, global_clipnorm=0.5, use_ema=True, exclude_from_weight_decay=["kernel"])


def part(tree, *paths):
    """Return the leaves of a tree that belong to a group, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keyed = {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}
    return {path: keyed[path] for path in paths}


def test_groups_equal_kernels_of_their_own():
    kernel = jk.partition(KERNELS, default=DEFAULT)
    params, state = run(kernel, PARAMS, GRADS)
    for own, paths in [(KERNELS["bias$|out"], ["dense/bias", "out/0", "out/1"]), (DEFAULT, ["dense/kernel"])]:
        expected, inner = run(own, part(PARAMS, *paths), [part(g, *paths) for g in GRADS])
        assert_close(part(params, *paths), expected, 4)
        assert_close({name: part(state.slots[name], *paths) for name in inner.slots}, inner.slots, 4)
    assert_same_bits(params["embed"], PARAMS["embed"])
    assert slots_at(state, "embed") == {} and state.count == 4
    assert state.scalars["bias$|out"]["step"] == 2 and state.scalars["default"]["step"] == 4
    averaged = kernel.averaged(params, state)
    assert_same_bits(averaged["dense"]["kernel"], state.slots["average"]["dense"]["kernel"])
    assert_same_bits(averaged["dense"]["bias"], params["dense"]["bias"])


def test_it_is_a_kernel():
    kernel = jk.partition(KERNELS, default=DEFAULT)
    state = kernel.init(PARAMS)
    assert types(jax.eval_shape(kernel.step, PARAMS, state, GRADS[0])) == types((PARAMS, state))
    updates, moved = kernel.update(GRADS[0], state, PARAMS)
    params, stepped = kernel.step(PARAMS, state, GRADS[0], donate=False)
    assert_close(jax.tree.map(jnp.add, PARAMS, updates), params, 1)
    assert kernel == jk.partition(KERNELS, default=DEFAULT) and hash(kernel) == hash(jk.partition(KERNELS, DEFAULT))
    assert_close(moved, stepped, 1)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS)
    assert types(kernel.init(shapes)) == types(state)
    assert kernel.describe(shapes).bytes == kernel.describe(PARAMS).bytes
    assert "embed: frozen" in str(kernel.describe(PARAMS))
    copy = pickle.loads(pickle.dumps(kernel))
    assert copy == kernel
    assert_same_bits(run(copy, PARAMS, GRADS[:1]), run(kernel, PARAMS, GRADS[:1]))
    packed = jk.pack(PARAMS)
    new, _ = kernel.step(packed, kernel.init(packed), packed.like(GRADS[0]))
    assert_close(new.unpack(), params, 1)


def test_hyperparameters_of_groups():
    """In the kernel: of every group that has all of them."""
    kernel = jk.partition({"dense": jk.sgd(0.1)}, default=jk.adam(0.2))
    assert kernel.replace(learning_rate=0.5) == jk.partition({"dense": jk.sgd(0.5)}, default=jk.adam(0.5))
    assert kernel.replace(beta_1=0.5) == jk.partition({"dense": jk.sgd(0.1)}, default=jk.adam(0.2, beta_1=0.5))
    assert kernel.hyper()["dense"].keys() == {"learning_rate"}
    with pytest.raises(ValueError, match="No group has"):
        kernel.replace(rho=0.5)
    with pytest.raises(ValueError, match="No group has the injected hyperparameters"):
        kernel.replaced(kernel.init(PARAMS), learning_rate=0.5)


def test_injected_hyperparameters_of_groups():
    kernel = jk.partition(
        {"dense": jk.sgd(0.1, inject_hyperparams=True)}, default=jk.adam(0.2, inject_hyperparams=True)
    )
    state = kernel.init(PARAMS)
    both = kernel.replaced(state, learning_rate=0.5).hyperparams
    assert both["dense"]["learning_rate"] == both["default"]["learning_rate"] == 0.5
    one = kernel.in_group(state, "dense", learning_rate=0.5)
    assert one.hyperparams["dense"]["learning_rate"] == 0.5 != one.hyperparams["default"]["learning_rate"]
    assert kernel.replaced(state, beta_1=0.5).hyperparams["dense"] == state.hyperparams["dense"]
    params, _ = kernel.step(PARAMS, one, GRADS[0], donate=False)
    own = jk.partition({"dense": jk.sgd(0.5)}, default=jk.adam(0.2))
    assert_same_bits(params, own.step(PARAMS, own.init(PARAMS), GRADS[0], donate=False)[0])
    with pytest.raises(ValueError, match="no group"):
        kernel.in_group(state, "densest", learning_rate=0.5)
    with pytest.raises(ValueError, match="No group has"):
        kernel.replaced(state, rho=0.5)


def test_the_first_pattern_wins():
    kernel = jk.partition({"kernel": jk.frozen(), "dense": jk.sgd(1.0), ".": jk.frozen()})
    params, _ = kernel.step(PARAMS, kernel.init(PARAMS), GRADS[0], donate=False)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, PARAMS)
    assert moved == {"embed": False, "dense": {"kernel": False, "bias": True}, "out": [False, False]}


def test_what_is_refused():
    with pytest.raises(ValueError, match="`embed`, which no pattern of .* matches"):
        jk.partition({"dense|out": jk.sgd()}).init(PARAMS)
    with pytest.warns(UserWarning, match="'dence' matches no parameter"):
        jk.partition({"dence": jk.sgd()}, default=jk.sgd()).init(PARAMS)
    with pytest.raises(TypeError, match="patterns to kernels"):
        jk.partition({"dense": jk.SGD()})
    with pytest.raises(TypeError, match="patterns to kernels"):
        jk.partition([jk.sgd()])
    with pytest.raises(ValueError, match="regular expressions"):
        jk.partition({"(": jk.sgd()})
    with pytest.raises(ValueError, match="`default=`"):
        jk.partition({"default": jk.sgd()})
    with pytest.raises(ValueError, match="at least one kernel"):
        jk.partition({})
    with pytest.raises(ValueError, match=r"loss_scaled\(partition"):
        jk.partition({"a": jk.loss_scaled(jk.sgd())})
    with pytest.raises(ValueError, match="`a/b` twice"):
        jk.partition({}, default=jk.sgd()).init({"a": {"b": jnp.ones(2)}, "a/b": jnp.ones(2)})


def test_one_decision_for_all_groups():
    kernel = jk.partition(
        {"embed": jk.frozen(), "dense": jk.adam(skip_nonfinite=True, gradient_accumulation_steps=2)},
        default=jk.sgd(1.0),
    )
    good = run(kernel, PARAMS, GRADS)
    bad = [GRADS[0] | {"out": [GRADS[0]["out"][0] * jnp.nan, jnp.ones(())]}, *GRADS]
    params, state = run(kernel, PARAMS, bad)
    assert state.scalars[SKIPPED] == 1
    assert_same_bits((params, state._replace(scalars=good[1].scalars)), good)
    harmless = [GRADS[0] | {"embed": GRADS[0]["embed"] * jnp.nan}, *GRADS[1:]]  # a frozen group's gradient is not read
    assert_same_bits(run(kernel, PARAMS, harmless), good)


def test_loss_scale():
    kernel = jk.loss_scaled(jk.partition(KERNELS, default=DEFAULT), 1024.0, 3, lowest_scale=512.0, highest_scale=2048.0)
    params, state = jax.tree.map(jnp.copy, PARAMS), kernel.init(PARAMS)
    seen = []
    for factor in (1, 1, 1, 1, np.nan, 1, np.inf, np.nan, np.nan, 1, 1, 1, 1, 1, 1, 1, 1, 1):
        grads = jax.tree.map(lambda g, f=factor, s=state.scalars[SCALE]: g * s * f, GRADS[0])
        params, state = kernel.step(params, state, grads)
        seen.append((float(state.scalars[SCALE]), int(state.scalars[GOOD]), int(state.scalars[SKIPPED])))
    expected = [(1024, 1, 0), (1024, 2, 0), (2048, 0, 0), (2048, 1, 0), (1024, 0, 1), (1024, 1, 1)]
    expected += [(512, 0, 2), (512, 0, 3), (512, 0, 4), (512, 1, 4), (512, 2, 4), (1024, 0, 4)]
    expected += [(1024, 1, 4), (1024, 2, 4), (2048, 0, 4), (2048, 1, 4), (2048, 2, 4), (2048, 0, 4)]
    assert seen == expected
    plain = jk.partition(KERNELS, default=DEFAULT)
    assert_close(params, run(plain, PARAMS, [GRADS[0]] * 14)[0], 14)


@pytest.mark.parametrize("wrap", [lambda k: k, lambda k: jk.partition({"^": k})], ids=["plain", "partition"])
def test_loss_scale_in_half_precision(wrap):
    """Gradients that would be zero in float16 train; the counter of a guard inside is the same."""
    kernel = jk.loss_scaled(wrap(jk.adam(0.1, skip_nonfinite=True, axis_name="batch")), 2.0**15)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))

    spec = PartitionSpec("batch")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    def step(x):
        w = {"w": jnp.ones(2, jnp.float16)}
        state = kernel.init(w)
        loss = lambda w: kernel.scale_loss(jnp.sum(w["w"] * x * jnp.float16(1e-7)), state)
        w, state = kernel.step(w, state, jax.grad(loss)(w))
        return w["w"][None], state.scalars[SKIPPED][None], state.scalars[SCALE][None]

    w, skipped, scale = step(jnp.ones(2, jnp.float16))
    assert (w < 1).all() and skipped.tolist() == [0, 0]
    w, skipped, scale = step(jnp.array([1.0, jnp.inf], jnp.float16))  # on one device
    assert (w == 1).all() and skipped.tolist() == [1, 1] and scale.tolist() == [2.0**14] * 2


def test_loss_scale_refuses():
    with pytest.raises(TypeError, match="must be a kernel"):
        jk.loss_scaled(jk.Adam())
    with pytest.raises(ValueError, match="already"):
        jk.loss_scaled(jk.loss_scaled(jk.adam()))
    with pytest.raises(ValueError, match="in the order"):
        jk.loss_scaled(jk.adam(), 0.5)
    with pytest.raises(ValueError, match="dynamic_growth_steps"):
        jk.loss_scaled(jk.adam(), dynamic_growth_steps=0)
    kernel = jk.loss_scaled(jk.adam())
    assert pickle.loads(pickle.dumps(kernel)) == kernel
    updates, state = kernel.update(jax.tree.map(lambda g: g * jnp.nan, GRADS[0]), kernel.init(PARAMS), PARAMS)
    assert all(not np.any(u) for u in jax.tree.leaves(updates)) and state.scalars[SKIPPED] == 1


@pytest.mark.parametrize("wrap", [lambda kernel: kernel, jk.loss_scaled], ids=["plain", "loss scale"])
def test_an_unused_pattern_is_reported_inside_wrappers(wrap):
    kernel = wrap(jk.partition({"misspelt": jk.sgd(0.1)}, default=jk.adam()))
    with pytest.warns(UserWarning, match="'misspelt'"):
        kernel.init({"w": jnp.ones(3)})
