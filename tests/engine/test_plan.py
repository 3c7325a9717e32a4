"""`describe` says of each parameter which group it is in, at which rate it is updated, and whether it decays."""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

import jaxopt_keras as jk
from jaxopt_keras.optimizers import MODIFIERS, MORE_FUNCTIONS

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "n": jnp.array(1)}
schedule = jk.schedules.CosineDecay(0.5, 10)


def found(kernel: jk.Kernel, params: Any = PARAMS) -> dict[str, tuple[str, str, str]]:
    """The rule, the rate and the decay of each parameter."""
    groups = kernel.describe(params).groups
    return {path: (group.kind.rule, group.kind.rate, group.kind.decay) for group in groups for path in group.paths}


CASES = {
    "excluded": (jk.adamw(0.5, weight_decay=0.25, exclude_from_weight_decay=["bias"]),
                 {"kernel": ("AdamW", "0.5", "0.25"), "bias": ("AdamW", "0.5", "excluded")}),
    "no decay": (jk.sgd(schedule), {"kernel": ("SGD", "CosineDecay", "none"), "bias": ("SGD", "CosineDecay", "none")}),
    "a decay inside the rule": (jk.lamb(0.5, weight_decay=0.25, exclude_from_weight_decay=["bias"]),
                                {"kernel": ("Lamb", "0.5", "0.25"), "bias": ("Lamb", "0.5", "excluded")}),
    "a fallback": (jk.muon(0.5, weight_decay=0.25, adam_weight_decay=0.125),
                   {"kernel": ("Muon", "0.5", "0.25"), "bias": ("AdamPart", "0.5", "0.125")}),
    "groups": (jk.partition({"kernel": jk.sgd(0.5, weight_decay=0.25)}, default=jk.adam(0.125)),
               {"kernel": ("kernel: SGD", "0.5", "0.25"), "bias": ("default: Adam", "0.125", "none"),
                "n": ("default: frozen", "none", "none")}),
    "optax": (jk.Kernel.from_optax(optax.sgd(0.5)), {"kernel": ("Foreign", "none", "none")}),
    "around": (jk.loss_scaled(jk.sgd(0.5, inject_hyperparams=True)), {"kernel": ("SGD", "0.5", "none")}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_group_rate_and_decay(name):
    kernel, expected = CASES[name]
    described = found(kernel)
    assert described == {"n": ("frozen", "none", "none")} | described | expected
    header, *rows = str(kernel.describe(PARAMS)).splitlines()
    assert header.split()[-4:] == ["decay", "engine", "slots", "paths"]
    for rule, rate, decay in expected.values():
        assert any(rule in row and rate in row.split() and decay in row.split() for row in rows)


def test_a_function_of_the_step_has_its_name():
    def falling(step: Any) -> Any:
        return jnp.where(step > 3, 0.25, 0.5)

    assert found(jk.sgd(falling))["kernel"] == ("SGD", "falling", "none")


def test_the_table_has_the_first_paths():
    params = {f"w{i}": jnp.ones(2) for i in range(5)}
    plan = jk.adam().describe(params)
    assert "w0, w1, w2, and 2 more" in str(plan) and plan.groups[0].paths == [*params]


def test_patterns_that_match_nothing_are_noted():
    plain = jk.adamw(exclude_from_weight_decay=["bias", "norm"])
    groups = jk.partition({"head": jk.sgd(0.1)}, default=plain)
    for kernel, patterns in ((plain, ["norm"]), (groups, ["head", "norm"])):
        notes = [x for x in kernel.describe(PARAMS).notes if "matches no parameter" in x]
        assert len(notes) == len(patterns) and all(any(repr(p) in x for x in notes) for p in patterns)


def test_groups_keep_their_notes():
    plan = jk.partition({}, default=jk.muon()).describe(PARAMS)
    assert any("instead of Muon, updates bias" in note for note in plan.notes)


def test_of_what_needs_more_than_gradients():
    params = PARAMS | {"half": jnp.ones(4, jnp.bfloat16)}
    modules = {cls.__module__.rpartition(".")[2] for cls in MODIFIERS.values()}
    for name, make in MORE_FUNCTIONS.items():
        kernel = make(jk.adam()) if name in modules else make()
        assert {*found(kernel, params)} == {*params}, name
    assert found(jk.adam(gradient_accumulation_steps=2, weighted_accumulation=True))
    plan = jk.sam(jk.adam()).describe({"w": jnp.ones((64, 64))})
    assert plan.groups[0].kind.engine == jk.adam().describe({"w": jnp.ones((64, 64))}).groups[0].kind.engine


@pytest.mark.parametrize("what", [jk.Adam(), jk.Variable(jnp.ones(2)), "adam"])
def test_bytes_are_those_of_arrays(what):
    if isinstance(what, jk.Variable):
        assert jk.nbytes([what]) == 8
    else:
        with pytest.raises(TypeError, match=f"pytree of arrays. Received: {type(what).__name__}. Of an optimizer pass"):
            jk.nbytes(what)
