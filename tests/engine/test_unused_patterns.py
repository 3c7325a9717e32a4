"""Patterns have one meaning in both faces, and one that matches no parameter is named in a warning, once."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import jaxopt_keras as jk

PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "out": {"kernel": jnp.ones((3, 2))}}
PATHS = ["dense/bias", "dense/kernel", "out/kernel"]
clip = lambda p: jnp.clip(p, -1, 1)

CASES = {  # argument: (options, the pure function and the class)
    "exclude_from_weight_decay": lambda pattern: ({"exclude_from_weight_decay": [pattern]}, jk.adamw, jk.AdamW),
    "constraints": lambda pattern: ({"constraints": {pattern: clip}}, jk.sgd, jk.SGD),
    "offload": lambda pattern: ({"offload": {pattern: "pinned_host"}}, jk.adam, jk.Adam),
    "exclude_layers": lambda pattern: ({"exclude_layers": [pattern]}, jk.muon, jk.Muon),
}  # fmt: skip


def variables() -> list[Any]:
    return [jk.Variable(p, name=path) for path, p in zip(PATHS, jax.tree.leaves(PARAMS), strict=True)]


def messages(call: Any, *args: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(*args)
    assert all(w.category is UserWarning for w in found)
    return [str(w.message) for w in found]


@pytest.mark.parametrize("argument", CASES)
def test_both_faces_warn_once_of_a_pattern_that_matches_nothing(argument):
    options, function, cls = CASES[argument]("biass$")
    expected = f"The pattern 'biass$' matches no parameter (argument `{argument}`). There are "
    kernel, optimizer = function(**options), cls(**options)
    for found in (messages(kernel.init, PARAMS), messages(optimizer.build, variables())):
        assert len(found) == 1 and found[0].startswith(expected) and "dense/bias" in found[0]
    given = variables()
    optimizer = cls(**options)
    grads = [jnp.ones_like(v.value) for v in given]
    assert len(messages(optimizer.apply, grads, given)) == 1
    assert messages(optimizer.apply, grads, given) == []


@pytest.mark.parametrize("argument", CASES)
def test_a_pattern_is_searched_for_in_both_faces(argument):
    pattern = "kernel/momentum$" if argument == "offload" else "kernel$"
    options, function, cls = CASES[argument](pattern)
    assert messages(function(**options).init, PARAMS) == []
    assert messages(cls(**options).build, variables()) == []


@pytest.mark.parametrize("pattern, expected", [("bias$", ["dense/bias"]), ("^dense", PATHS[:2]), ("e.*l$", PATHS[1:])])
def test_groups_take_the_same_parameters_in_both_faces(pattern, expected):
    kernel = jk.partition({pattern: jk.sgd(0.5)}, default=jk.frozen())
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    params, _ = kernel.step(PARAMS, kernel.init(PARAMS), grads, donate=False)
    moved = [bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (params, PARAMS)), strict=True)]
    assert [path for path, x in zip(PATHS, moved, strict=True) if x] == expected
    groups = jk.OptimizerMap(jk.SGD(), {pattern: jk.Adam(name="found")})
    assert [path for path in PATHS if groups[path].name == "found"] == expected


def test_the_first_expression_wins_in_both_faces():
    groups = jk.OptimizerMap(jk.SGD(), {"bias": jk.SGD(name="a"), "dense": jk.SGD(name="b"), "dense/bias": jk.SGD()})
    del groups["dense/bias"]
    assert [groups[path].name for path in PATHS[:2]] == ["a", "b"]
    router = jk.partition({"bias": jk.sgd(), "dense": jk.sgd()}, jk.sgd()).program.router
    assert [router.of(path) for path in PATHS[:2]] == ["bias", "dense"]
    groups["dense/bias"] = jk.SGD(name="exact")
    assert groups["dense/bias"].name == "exact"


def test_groups_warn_of_keys_that_select_nothing():
    found = messages(jk.partition({"biass": jk.sgd()}, jk.adam()).init, PARAMS)
    assert [x.partition(". ")[0] for x in found] == ["The pattern 'biass' matches no parameter (argument `kernels`)"]
    groups = jk.OptimizerMap(jk.Adam(), {"biass": jk.SGD(), "bias": jk.SGD()})
    found = messages(jk.MultiOptimizer(groups).build, variables())
    assert [x.partition(". ")[0] for x in found] == [
        "The pattern 'biass' matches no parameter (argument `optimizer_map`)"
    ]


def test_patterns_of_a_group_are_searched_for_in_its_own_parameters():
    """In a wrapper and in the pure face alike; a group without parameters is named once."""
    inner = jk.adamw(exclude_from_weight_decay=["kernel", "bias"])
    found = messages(jk.loss_scaled(jk.partition({"bias": inner}, jk.sgd())).init, PARAMS)
    assert [x.partition(". ")[0] for x in found] == [
        "The pattern 'kernel' matches no parameter (argument `exclude_from_weight_decay`)"
    ]
    groups = jk.OptimizerMap(jk.SGD(), {"bias": jk.AdamW(exclude_from_weight_decay=["kernel", "bias"])})
    optimizer = jk.LossScaleOptimizer(jk.MultiOptimizer(groups))
    assert [x.partition(" There")[0] for x in messages(optimizer.build, variables())] == [
        "The pattern 'kernel' matches no parameter (argument `exclude_from_weight_decay`)."
    ]
    assert len(messages(jk.partition({"x": inner}, jk.sgd()).init, PARAMS)) == 1


def test_packed_parameters_and_buffers():
    options, function, cls = CASES["exclude_from_weight_decay"]("kernel$")
    assert messages(function(**options).init, jk.pack(PARAMS)) == []
    assert messages(cls(exclude_from_weight_decay=["kernel|bias"]).build, jk.pack_variables(variables())) == []
    assert len(messages(cls(exclude_from_weight_decay=["x"]).build, jk.pack_variables(variables()))) == 1


def test_names_of_variables():
    optimizer = jk.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias", "scale"])
    found = messages(optimizer.build, variables())
    assert len(found) == 1 and found[0].startswith("The pattern 'scale' matches no parameter (argument `var_names`)")


def test_the_warning_is_at_the_call_of_init():
    with pytest.warns(UserWarning, match="'x' matches no parameter .argument `kernels`") as found:
        jk.partition({"x": jk.sgd()}, jk.adam()).init(PARAMS)
    assert found[0].filename == __file__


def test_keras_maps_keep_their_meaning():
    """Keras's expressions match whole paths, and a key that is a path goes first."""
    theirs = keras.optimizers.OptimizerMap(
        keras.optimizers.SGD(),
        {
            "dense": keras.optimizers.Adam(name="a"),
            "dense/.*": keras.optimizers.Adam(name="b"),
            "dense/bias": keras.optimizers.Adam(name="c"),
        },
    )
    config = keras.optimizers.serialize(keras.optimizers.MultiOptimizer(theirs))
    ours: Any = jk.deserialize(config)
    for path in [*PATHS, "dense", "my/dense", "my/dense/kernel"]:
        assert ours._map[path].name == theirs[path].name
    with pytest.warns(UserWarning, match=r"'\^\(\?:dense\)\$' matches no parameter .argument `optimizer_map`"):
        ours.build(variables())
    again: Any = jk.deserialize(jk.serialize(ours))
    assert [*again._map] == [*ours._map]
    np.testing.assert_equal([again._map[path].name for path in PATHS], [ours._map[path].name for path in PATHS])
