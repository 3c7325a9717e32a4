"""Operations of the compiled, donated step on a CPU: a check without a clock, more reliable than a benchmark.

XLA's CPU compiler makes one loop ("fusion") for each array that it writes, in place where the array is donated and
no operation reads the old one afterwards. So a step over one array should have

- an alias from every donated buffer to an output: parameters, step count, scalars and slots,
- no copy of an array,
- one fusion for each slot, and one for the parameter,
- no float64 array, under x64 neither.

Exceptions are declared here, each with its reason; `extra` fusions are allowed beyond the rule.
"""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import jaxopt_keras as jk
from jaxopt_keras.engine.native import unavailable
from jaxopt_keras.optimizers import FUNCTIONS

SHAPE = (16, 16)


class Exceptional(NamedTuple):
    """An allowed exception, and its reason."""

    reason: str
    extra: int = 0
    copies: int = 0


OLD_SLOT = "the new parameter and the new slot both read the old slot: XLA copies it for the second of them"
WIDENED = "a 16-bit array that is read twice is widened once and copied before it is overwritten"
RULES = {
    "adadelta": Exceptional("the limited gradient, the step u, and its square in the second accumulator", extra=3),
    "adafactor": Exceptional("means over rows and over columns, and the roots of the rows'", extra=3),
    "ftrl": Exceptional(OLD_SLOT, extra=1, copies=1),
    "lamb": Exceptional("the step's norm has to be known before it is taken", extra=1),
    "lion": Exceptional(OLD_SLOT, copies=1),
    "muon": Exceptional("five Newton-Schulz iterations of three matrix products each", extra=31),
    "schedule_free_adamw": Exceptional(OLD_SLOT + "; the limited gradient", extra=1, copies=1),
}
OTHERS = Exceptional(
    "a rule that is not listed may keep intermediate results, and read an old slot twice", extra=4, copies=2
)
PRODUCTS = Exceptional("products and factors of matrices: any number", extra=1000, copies=1000)
OPTIONS: dict[str, tuple[dict[str, Any], Exceptional]] = {
    "ema": ({"use_ema": True}, Exceptional("")),
    "decay": ({"weight_decay": 0.1}, Exceptional("")),
    "clipvalue": ({"clipvalue": 1.0}, Exceptional("")),
    "clipnorm": ({"clipnorm": 1.0}, Exceptional("")),
    "global_clipnorm": ({"global_clipnorm": 1.0}, Exceptional("")),
    "accumulation": ({"gradient_accumulation_steps": 2}, Exceptional("")),
    "bfloat16 slots": ({"state_dtype": "bfloat16"}, Exceptional(WIDENED, copies=2)),
}
HALF: dict[str, tuple[dict[str, Any], Exceptional]] = {
    "float32": ({"master_weights": "float32"}, Exceptional("")),
    "bf16+16": ({"master_weights": "bf16+16"}, Exceptional(WIDENED, extra=1, copies=1)),
    "bf16+8": ({"master_weights": "bf16+8"}, Exceptional(WIDENED, extra=1, copies=1)),
    "stochastic": ({"rounding": "stochastic"}, Exceptional("")),
}


class Structure(NamedTuple):
    fusions: int  # that write arrays; those of scalars cost nothing
    copies: int
    aliases: int
    text: str

    @classmethod
    def of(cls, jitted: Any, *args: Any) -> "Structure":
        text = jitted.lower(*args).compile().as_text()
        array = r"= \(?\w+\[\d\S* "  # neither a scalar nor a token
        return cls(
            len(re.findall(array + r"fusion\(", text)),
            len(re.findall(array + r"copy\(", text)),
            len(re.findall(r"(?:may|must)-alias\)", text.splitlines()[0])),
            text,
        )


USUAL = Exceptional("")


def check(kernel: jk.Kernel, params: Any, allowed: Exceptional = USUAL, engine: Any = "xla") -> Structure:
    kernel = jk.Kernel(kernel.rule, dataclasses.replace(kernel.options, engine=engine))
    state = kernel.init(params)
    found = Structure.of(kernel.compiled.step_donating, params, state, params, kernel.hyper())
    donated = len(jax.tree.leaves((params, state)))
    written = len(jax.tree.leaves(params)) + len(jax.tree.leaves(state.slots))
    assert found.aliases == donated
    assert found.copies <= allowed.copies if allowed in (OTHERS, PRODUCTS) else found.copies == allowed.copies
    assert found.fusions <= written + allowed.extra
    assert not re.search(r"f64\[\d", found.text)
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rules(name):
    kernel = FUNCTIONS[name](0.1)
    usual = USUAL if "keras" in kernel.rule.variants else OTHERS if kernel.rule.grain != "matrix" else PRODUCTS
    check(kernel, jnp.ones(SHAPE), RULES.get(name, usual))


@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
@pytest.mark.parametrize("name", [name for name, make in FUNCTIONS.items() if make().rule.grain != "matrix"])
def test_native_loops(name):
    """The loops write every array in place, and nothing else writes one."""
    params, rows = {"w": jnp.ones(SHAPE), "b": jnp.ones(16)}, Exceptional("rows of scalars for the loops", extra=20)
    found = check(FUNCTIONS[name](0.1, global_clipnorm=1.0), params, rows, engine="native")
    assert not re.search(r"= \(?f32\[(16|16,16)\]\S* fusion\(", found.text)
    assert found.text.count("jaxopt_keras_") >= 2


@pytest.mark.parametrize("name", ["adam", "nadam"])  # the one with numbers that are kept once
def test_no_float64_arrays_under_x64(name, x64):
    check(FUNCTIONS[name](0.1), jnp.ones(SHAPE, jnp.float32))


@pytest.mark.parametrize("case", OPTIONS)
def test_what_is_around_the_rule(case):
    options, allowed = OPTIONS[case]
    check(jk.adamw(0.1, **options), jnp.ones(SHAPE), allowed)


@pytest.mark.parametrize("case", HALF)
def test_bfloat16_parameters(case):
    options, allowed = HALF[case]
    check(jk.adamw(0.1, **options), jnp.ones(SHAPE, jnp.bfloat16), allowed)


def test_many_arrays_are_as_one():
    found = check(jk.adamw(0.1), {"w": jnp.ones(SHAPE), "b": jnp.ones(16), "c": jnp.ones((2, 3))})
    assert found.fusions == 3 * 3


def test_packed_arrays():
    tree = {"w": jnp.ones(SHAPE), "b": jnp.ones(16)}
    packed = jk.pack(tree)
    assert check(jk.adamw(0.1), packed).fusions == 3
    # Cut out: the norms of each, two arrays in each buffer, and one concatenation that does not know its place.
    check(jk.lamb(0.1), packed, Exceptional("", extra=2, copies=1))


def test_codes_are_aliased():
    """Codes need several passes, and the greatest of each block first: only where they are kept is held here."""
    params = jnp.ones((64, 64))
    kernel = jk.adamw(0.1, state_dtype="int8")
    state = kernel.init(params)
    found = Structure.of(kernel.compiled.step_donating, params, state, params, kernel.hyper())
    assert found.aliases == len(jax.tree.leaves((params, state)))
    assert not re.search(r"f64\[\d", found.text)


def test_the_wrong_order_would_be_seen():
    """Donated buffers that come in another order than the outputs cost a copy each: `jit` pairs them in order."""
    kernel, params = jk.adamw(0.1), jnp.ones(SHAPE)
    state = kernel.init(params)

    def swapped(moving: Any, params: Any, grads: Any, hyper: Any) -> Any:
        return kernel.program.bare_step(params, moving, grads, hyper)

    found = Structure.of(jax.jit(swapped, donate_argnums=(0, 1)), state, params, params, kernel.hyper())
    assert found.copies > 0
