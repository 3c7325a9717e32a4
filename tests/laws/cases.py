"""The cases of the laws: every rule and variant, with its defaults and with all switches changed; and trees."""

import dataclasses
import importlib
from collections.abc import Iterator
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_keras import Kernel, Options, Rule, rules
from jaxopt_keras.engine.core import Now
from jaxopt_keras.engine.cores.leafwise import KEY, At
from jaxopt_keras.language.modifier import is_joint, routed
from jaxopt_keras.language.rule import fields_of
from jaxopt_keras.storage import hash_rng

RULES = [x for x in vars(rules).values() if isinstance(x, type) and issubclass(x, Rule) and x.takes in ((), (KEY,))]
RATE = 0.0625  # exact in every dtype, and large enough for a step to show in bfloat16


class Case(NamedTuple):
    """A rule and the options that it comes with."""

    rule: Rule
    options: Options
    setting: str

    def __str__(self) -> str:
        return f"{type(self.rule).__name__}-{self.rule.variant}-{self.setting}"

    @property
    def in_large_blocks(self) -> "Case":
        """The case for large arrays: XLA compiles a call for each block that Shampoo decomposes."""
        blocks = "max_preconditioner_dim"
        return self._replace(rule=dataclasses.replace(self.rule, **{blocks: 64} if hasattr(self.rule, blocks) else {}))

    def kernel(self, learning_rate: Any = RATE, **options: Any) -> Kernel:
        """The case with another rate, and with more options."""
        rule = dataclasses.replace(self.rule, learning_rate=learning_rate)
        return Kernel(rule, dataclasses.replace(self.options, **options))


def switched(cls: type[Rule]) -> dict[str, Any]:
    """Return hyperparameters with which everything that is off by default is on, and everything that is on is off.

    Where a number shows only after many updates, the oracle has another one in `telling`.
    """
    values: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        field = fields_of(cls)[f.name]
        if field.fixed == 0:
            values[f.name] = 0.9
        elif field.types == (bool,):
            values[f.name] = not f.default
        elif field.traced or int in field.types:
            if f.default is None or f.default == 0:
                values[f.name] = next(x for x in ((0.125, 2.0) if field.traced else (2,)) if x in (field.range or [x]))
            elif NoneType in field.types:
                values[f.name] = None
    module = importlib.import_module(f"tests.oracles.{cls.__module__.rpartition('.')[2]}")
    return values | getattr(module, "telling", {})


PLAIN, SWITCHED = [
    [
        Case(cls(**values, learning_rate=RATE, variant=variant), Options(**options), setting)
        for cls in RULES
        for variant in cls.variants
        for values, options in [
            (switched(cls), {"weight_decay": 0.01}) if setting == "switched" else ({}, cls.defaults)
        ]
    ]
    for setting in ("plain", "switched")
]
CASES = PLAIN + SWITCHED

# Compilation takes most of the time. Half of the cases will do where a law is about a rule's equations, and one variant
# where it is not about their details. Where it is about the engine, one of each kind that the engine distinguishes: a
# slot, many of them, numbers that are kept once, its own average, norms, factored slots, matrices. Where it is about
# what surrounds the rule, two of those that may go through all of it: with the fewest slots, and the most.
FIRST = [case for case in PLAIN if case.rule.variant == case.rule.variants[0]]
TOLD_APART = "SGD-keras Adam-keras Nadam-keras ScheduleFreeAdamW-optax Lamb-keras Adafactor-keras Muon-keras".split()
RULE_BY_RULE = [case for case in SWITCHED if case.rule.variant == case.rule.variants[0]]
KINDS = [case for case in SWITCHED if str(case).removesuffix("-switched") in TOLD_APART]
PLAIN_KINDS = [case for case in FIRST if type(case.rule) in {type(kind.rule) for kind in KINDS}]
ELEMENTWISE = [case for case in SWITCHED if case.rule.grain == "element" and not is_joint(case.rule)]
FEW = [pick(ELEMENTWISE, key=lambda case: len(case.rule.slots())) for pick in (min, max)]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_rule = pytest.mark.parametrize("case", RULE_BY_RULE, ids=str)
kinds = pytest.mark.parametrize("case", KINDS, ids=str)
switched_cases = pytest.mark.parametrize("case", SWITCHED, ids=str)
elementwise_cases = pytest.mark.parametrize("case", ELEMENTWISE, ids=str)
few_cases = pytest.mark.parametrize("case", FEW, ids=str)

SMALL = {"kernel": (4, 3), "bias": (3,)}
AWKWARD = {  # and more arrays than `slot_packing.FEW`
    "dense": {"kernel": (4, 3), "bias": (3,)},
    "list": [(), (0, 2), (2, 3, 5), (3,), (3,)],
    "embedding": (5, 2),
    "half": (5,),
}


def draw(shapes: Any, seed: int, dtype: Any = jnp.float32, scale: float = 1.0) -> Any:
    """A tree of normal numbers, for a tree of shapes. `half` is bfloat16 beside float32."""
    rng = np.random.default_rng(seed)

    def one(path: Any, shape: tuple[int, ...]) -> jax.Array:
        x = rng.normal(size=shape) * scale
        if jnp.issubdtype(dtype, jnp.complexfloating):
            x = x + 1j * rng.normal(size=shape) * scale
        half = dtype == jnp.float32 and "half" in jax.tree_util.keystr(path)
        return jnp.asarray(x, jnp.bfloat16 if half else dtype)

    return jax.tree_util.tree_map_with_path(one, shapes, is_leaf=lambda x: isinstance(x, tuple))


def parameters(shapes: Any = SMALL, dtype: Any = jnp.float32) -> Any:
    """Fresh parameters; biases are zero, as they are at the start of a training."""
    drawn = draw(shapes, 0, dtype)
    zero = lambda path, x: jnp.zeros_like(x) if "bias" in jax.tree_util.keystr(path) else x
    return jax.tree_util.tree_map_with_path(zero, drawn)


def gradients(count: int, shapes: Any = SMALL, dtype: Any = jnp.float32) -> list[Any]:
    """Different ones for every step, of size 1, 0.1, 0.01, 1, ..."""
    return [draw(shapes, 1 + i, dtype, 0.1 ** (i % 3)) for i in range(count)]


def run(kernel: Kernel, params: Any, grads: list[Any], state: Any = None) -> tuple[Any, Any]:
    """The parameters and the state after all `grads`."""
    state = kernel.init(params) if state is None else state
    for g in grads:
        params, state = kernel.step(params, state, g, donate=False)
    return params, state


def slots_at(state: Any, *path: Any) -> dict[str, Any]:
    """The slots of a part of the parameters by name, without those that a parameter there lacks."""
    found = {}
    for name, tree in state.slots.items():
        for key in path:
            tree = tree[key]
        if not isinstance(tree, optax.MaskedNode):
            found[name] = tree
    return found


def by_hand(case: Case, params: Any, grads: list[Any]) -> dict[str, np.ndarray]:
    """The rule itself, in float64, every hyperparameter a Python float: no engine, nothing traced."""
    with jax.enable_x64(True):
        params, grads = jax.tree.map(lambda x: jnp.asarray(x, float), (params, grads))
        decay, scalars = case.options.weight_decay, case.rule.scalars()
        rules = {path: routed(case.rule, path, p) for path, p in params.items()}
        slots = {path: rule.init(params[path]) for path, rule in rules.items()}
        for i, g in enumerate(grads):
            now = Now(jnp.asarray(i + 1.0), RATE, decay, {})
            for path, rule in rules.items():
                shrink = rule.decoupled(decay)
                params[path] = params[path] if shrink is None else params[path] * (1 - RATE * shrink)
            everything = {path: (g[path], params[path], slots[path]) for path in rules}
            at = At.of(now, advanced(case.rule, everything, now, scalars), scalars)
            scalars = at.scalars
            for path, rule in rules.items():
                key = jax.random.key(hash_rng.seeds(0, [f"{path}/random"], i)[0])
                step, slots[path] = rule.update(*everything[path], at._replace(key=key))
                params[path] = params[path] + step
        return jax.tree.map(np.asarray, params)


def advanced(rule: Rule, arrays: dict[str, Any], now: Now, scalars: Any) -> Any:
    """The next scalars, for arrays `{path: (gradient, parameter, slots)}`."""
    if scalars is None:
        return None
    shares = [rule.share(*x, At.of(now, scalars, scalars)) for x in arrays.values()] if is_joint(rule) else []
    sums = jax.tree.map(lambda *x: sum(x), *shares) if shares else None
    return rule.advance(scalars, At.of(now, scalars, scalars, sums))


def types(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    aval = lambda x: (x.shape, x.dtype, x.weak_type)
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [aval(x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)) for x in leaves]


def operations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr and of all that it calls."""
    for eqn in jaxpr.eqns:
        inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
        inner = [x for x in inner if hasattr(x, "eqns")]
        for x in inner:
            yield from operations(x)
        if not inner:
            yield eqn


def pairs(actual: Any, expected: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The leaves of both, with their paths, as NumPy arrays."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), e in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype, jax.tree_util.keystr(path)
        yield jax.tree_util.keystr(path), np.asarray(a), np.asarray(e)


def assert_same_bits(actual: Any, expected: Any) -> None:
    for path, a, e in pairs(actual, expected):
        assert a.tobytes() == e.tobytes() and a.shape == e.shape, f"{path}: {a} is not {e}"


def assert_close(actual: Any, expected: Any, steps: int) -> None:
    """Equal but for the rounding of `steps` steps, in two programs of the same formulas."""
    for path, a, e in pairs(actual, expected):
        assert_rounded(a, e, rounding(e.dtype, steps), path)


def rounding(dtype: Any, steps: int) -> float:
    """A few roundings in each step; they are as good as independent, so that their sum grows with the root."""
    return 4 * steps**0.5 * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.inexact) else 0.0


def assert_rounded(a: Any, e: Any, tolerance: float, message: str) -> None:
    """Within `tolerance` of the largest element."""
    assert np.shape(a) == np.shape(e), message
    a, e = (np.asarray(x).astype(complex if np.iscomplexobj(x) else float) for x in (a, e))
    np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.max(np.abs(e), initial=0), err_msg=message)
