"""Train in the one, go on in the other: the same trajectory, from torch and to torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_keras as jk
from jaxopt_keras import checkpoint

RNG = np.random.default_rng(0)
ORDER = ["dense/kernel", "dense/bias", "conv/kernel", "scale"]
AXES = {"dense/kernel": (1, 0), "conv/kernel": (2, 3, 1, 0)}  # torch has (out, in), and (out, in, height, width)
SHAPES = {"dense": {"kernel": (6, 4), "bias": (4,)}, "conv": {"kernel": (2, 3, 4, 5)}, "scale": ()}
STEPS, HALF = 6, 3


def drawn(size=1.0):
    is_shape = lambda x: isinstance(x, tuple)
    return jax.tree.map(lambda s: jnp.asarray(size * RNG.normal(size=s), jnp.float32), SHAPES, is_leaf=is_shape)


PARAMS, GRADS = drawn(), [drawn(0.3) for _ in range(STEPS)]
B = {"beta_1": 0.875, "beta_2": 1 - 2**-7, "epsilon": 1e-8}
TB = {"betas": (0.875, 1 - 2**-7)}
O = {"variant": "optax"}  # noqa: E741  # O as in optax, in a long table
# Where torch adds epsilon to the root and we to the square, it is nothing but a guard here.
CASES = {
    "Adam": (jk.adam(0.1, **B, **O), TB),
    "AdamW": (jk.adamw(0.1, 0.01, **B, **O), TB | {"weight_decay": 0.01}),
    "SGD": (jk.sgd(0.1), {}),
    "SGD momentum keras": (jk.sgd(0.1, momentum=0.9), {"momentum": 0.9}),
    "SGD momentum optax": (jk.sgd(0.1, momentum=0.9, nesterov=True, **O), {"momentum": 0.9, "nesterov": True}),
    "RMSprop": (jk.rmsprop(0.1, epsilon=1e-30), {"alpha": 0.9, "eps": 1e-30}),
    "RMSprop with all": (
        jk.rmsprop(0.1, momentum=0.5, centered=True, epsilon=1e-12),
        {"alpha": 0.9, "momentum": 0.5, "centered": True, "eps": 1e-12},
    ),
    "Adagrad": (jk.adagrad(0.1, epsilon=1e-30), {"initial_accumulator_value": 0.1, "eps": 1e-30}),
    "Adadelta": (jk.adadelta(0.1, rho=0.9, epsilon=1e-6), {"rho": 0.9, "eps": 1e-6}),
    "Adamax": (jk.adamax(0.1, **B, **O), TB),
    "NAdam": (jk.nadam(0.1, **B), TB | {"momentum_decay": 1.0}),
    "Adam amsgrad": (jk.adam(0.1, amsgrad=True, **B | {"epsilon": 1e-12}), TB | {"amsgrad": True, "eps": 1e-12}),
    "Adam int8": (jk.adam(0.1, state_dtype="int8", skip_nonfinite=True, **B, **O), TB),  # these arrays are too small
}


def flat(tree):
    """In torch's order and layout."""
    arrays = {"/".join(k.key for k in key): np.asarray(x) for key, x in jax.tree_util.tree_leaves_with_path(tree)}
    return [np.transpose(arrays[n], np.argsort(AXES[n])) if n in AXES else arrays[n] for n in ORDER]


def ours(kernel, params, state, grads):
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return params, state


class Theirs:
    def __init__(self, name, arguments, params, state_dict=None):
        self.torch = pytest.importorskip("torch")
        self.params = [self.torch.nn.Parameter(self.torch.tensor(np.array(x))) for x in flat(params)]
        self.optimizer = getattr(self.torch.optim, name)(self.params, lr=0.1, **arguments)
        if state_dict is not None:
            self.optimizer.load_state_dict(state_dict(self.optimizer.state_dict()))

    def run(self, grads):
        for g in grads:
            for p, x in zip(self.params, flat(g), strict=True):
                p.grad = self.torch.tensor(np.array(x))
            self.optimizer.step()
        return [p.detach().numpy() for p in self.params]


def tree(arrays):
    x = [np.transpose(x, AXES[n]) if n in AXES else x for n, x in zip(ORDER, arrays, strict=True)]
    kernel, bias, conv, scale = map(jnp.array, x)
    return {"dense": {"kernel": kernel, "bias": bias}, "conv": {"kernel": conv}, "scale": scale}


def close(a, b):
    """Within 1e-5 of the way that they went."""
    for n, x, y, s in zip(ORDER, a, b, flat(PARAMS), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.max(np.abs(y - s)) + 1e-8, err_msg=n)


@pytest.mark.parametrize("name", CASES)
def test_from_torch_and_to_torch(name):
    kernel, arguments = CASES[name]
    torch_name = name.split()[0]
    expected = Theirs(torch_name, arguments, PARAMS).run(GRADS)
    first = Theirs(torch_name, arguments, PARAMS)
    params = tree(first.run(GRADS[:HALF]))
    state = checkpoint.from_torch(kernel, params, first.optimizer.state_dict(), ORDER, AXES)
    close(flat(ours(kernel, params, state, GRADS[HALF:])[0]), expected)
    assert int(state.count) == (0 if torch_name == "SGD" else HALF)

    params, state = ours(kernel, PARAMS, kernel.init(PARAMS), GRADS[:HALF])
    second = Theirs(torch_name, arguments, params, lambda fresh: checkpoint.to_torch(kernel, state, fresh, ORDER, AXES))
    close(second.run(GRADS[HALF:]), expected)


def made():
    """Return a `state_dict` of `torch.optim.Adam` in NumPy, after two steps with the gradients p, then p."""
    weight, bias = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32), np.array([0.5, -1.0], np.float32)
    state = {
        i: {"step": np.float32(2), "exp_avg": 0.19 * p, "exp_avg_sq": 0.001999 * p * p}
        for i, p in enumerate((weight, bias))
    }
    group = {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-08, "weight_decay": 0, "amsgrad": False, "params": [0, 1]}
    return weight, bias, {"state": state, "param_groups": [group]}


def test_a_state_dict_without_torch():
    weight, bias, state_dict = made()
    params = {"b": jnp.asarray(bias), "w": jnp.asarray(weight.T)}
    kernel = jk.adam(0.001, epsilon=1e-8, variant="optax")
    state = checkpoint.from_torch(kernel, params, state_dict, ["w", "b"], ["w"])
    expected = kernel.init(params)
    for _ in range(2):
        _, expected = kernel.step(params, expected, params, donate=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, expected)


def test_the_fixture_is_what_torch_says():
    torch = pytest.importorskip("torch")
    weight, bias, state_dict = made()
    params = [torch.nn.Parameter(torch.tensor(x)) for x in (weight, bias)]
    optimizer = torch.optim.Adam(params)
    for _ in range(2):
        for p, x in zip(params, (weight, bias), strict=True):
            p.grad = torch.tensor(x)
        optimizer.step()
    found = optimizer.state_dict()
    for i, own in state_dict["state"].items():
        assert own.keys() == found["state"][i].keys()
        for n, x in own.items():
            np.testing.assert_allclose(found["state"][i][n].numpy(), x, rtol=1e-5)
    assert state_dict["param_groups"][0].items() <= found["param_groups"][0].items()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_slots_in_bfloat16(dtype):
    """Also where the parameters are."""
    torch = pytest.importorskip("torch")
    kernel, params = jk.adam(variant="optax", state_dtype="bfloat16"), {"w": jnp.ones(3, dtype)}
    _, state = kernel.step(params, kernel.init(params), params, donate=False)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3, dtype=getattr(torch, dtype)))])
    optimizer.load_state_dict(checkpoint.to_torch(kernel, state, optimizer.state_dict(), ["w"]))
    again = checkpoint.from_torch(kernel, params, optimizer.state_dict(), ["w"])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), again, state)


def test_a_subclass_is_what_it_is_made_of():
    """Also in the units of its momentum."""

    class Mine(jk.rules.SGD):
        pass

    saved = {"state": {0: {"momentum_buffer": np.ones(3)}}, "param_groups": [{"params": [0]}]}
    kernel = jk.Kernel(Mine(0.5, momentum=0.9))
    state = checkpoint.from_torch(kernel, {"w": jnp.ones(3)}, saved, ["w"])
    assert state.slots["momentum"]["w"].tolist() == [-0.5] * 3


def test_refused_and_told():
    weight, bias, state_dict = made()
    params = {"b": jnp.asarray(bias), "w": jnp.asarray(weight.T)}
    kernel = jk.adam(variant="optax")
    for order in (["w"], ["w", "w"], "wb", ["w", "b", "c"]):
        with pytest.raises(ValueError, match="`order` must name each of torch's 2 parameters once"):
            checkpoint.from_torch(kernel, params, state_dict, order)
    with pytest.raises(ValueError, match="`order` must contain paths of our parameters"):
        checkpoint.from_torch(kernel, params, state_dict, ["w", "x"])
    with pytest.raises(ValueError, match=r"`slots/w/momentum` must have the shape \(3, 2\)"):
        checkpoint.from_torch(kernel, params, state_dict, ["w", "b"])
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="without {'b'}"):
        checkpoint.to_torch(kernel, kernel.init(params), state_dict, ["w", "x"])
    with pytest.raises(TypeError, match="`state_dict` must be that of a torch.optim optimizer"):
        checkpoint.from_torch(kernel, params, {"w": 1}, ["w", "b"])
    with pytest.raises(ValueError, match="Lion keeps .* which no known optimizer of torch keeps"):
        checkpoint.from_torch(jk.lion(), params, state_dict, ["w", "b"])
    with pytest.raises(ValueError, match="Use `variant='keras'`"):
        checkpoint.from_torch(jk.adam(amsgrad=True, variant="optax"), params, state_dict, ["w", "b"])
    state_dict["state"][1]["step"] = np.float32(5)
    with pytest.warns(UserWarning, match="counted 2 to 5 steps"):
        assert int(checkpoint.from_torch(kernel, params, state_dict, ["w", "b"], ["w"]).count) == 5
    del state_dict["state"][1]
    with pytest.warns(UserWarning, match="start fresh: `slots/b/momentum`"):
        checkpoint.from_torch(kernel, params, state_dict, ["w", "b"], ["w"])
