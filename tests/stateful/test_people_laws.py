"""Classes that people write have all that a rule has: options, shards, dtypes, averages, and one program for a step.

The right values are those of the rule with the same arithmetic.
"""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxopt_keras as jk
from tests.stateful.facade import close, some_grads, two, values


class Keras3(jk.Optimizer):
    """m <- 0.9 m + g, p <- p - lr m: `SGD(momentum=0.9, variant="optax")`."""

    def build(self, variables):
        super().build(variables)
        self.m = [self.add_variable_from_reference(v, "m") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        m = self.m[self._get_variable_index(variable)]
        m.assign(0.9 * m.value + gradient)
        variable.assign_sub(learning_rate * m.value)


class OwnVariables(Keras3):
    def build(self, variables):
        super(Keras3, self).build(variables)
        self.m = [jk.Variable(jnp.zeros_like(v.value, jnp.promote_types(v.dtype, jnp.float32))) for v in variables]


class Tf2(jk.Optimizer):
    def _create_slots(self, var_list):
        for v in var_list:
            self.add_slot(v, "m")

    def _resource_apply_dense(self, grad, var):
        m = self.get_slot(var, "m")
        m.assign(0.9 * m + grad)
        var.assign_sub(self._decayed_lr(var.dtype) * m)


WRITTEN = (Keras3, OwnVariables, Tf2)


def heavy_ball(*args, **options):
    return jk.SGD(*args, momentum=0.9, variant="optax", **options)


def handed_on(name, cls):
    """A subclass of a named class that overrides the step, and hands it on."""

    def update_step(self, gradient, variable, learning_rate):
        super(made, self).update_step(gradient, variable, learning_rate)

    made = type(f"{name}HandedOn", (cls,), {"update_step": update_step, "__module__": __name__})
    return globals().setdefault(made.__name__, made)


RULES = {
    "SGD": {"momentum": 0.9}, "Adam": {"amsgrad": True}, "Nadam": {}, "RMSprop": {"centered": True}, "Lamb": {},
    "Adafactor": {}, "Lion": {}, "Ftrl": {}, "Muon": {}, "RAdam": {}, "SOAP": {},
}  # fmt: skip
HANDED_ON = {name: handed_on(name, getattr(jk, name)) for name in RULES}
OPTIONS = {
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2, "clipvalue": 0.3, "loss_scale_factor": 2.0},
    "accumulated average": {"gradient_accumulation_steps": 2, "use_ema": True},
    "schedule of calls": {
        "gradient_accumulation_steps": 2, "schedule_counts": "calls",
        "learning_rate": jk.schedules.ExponentialDecay(0.1, 3, 0.5),
    },
    "decay": {"weight_decay": 0.1, "exclude_from_weight_decay": "bias", "global_clipnorm": 0.5},
    "constraint": {"constraints": {"kernel": jnp.abs}},
    "guards": {"skip_nonfinite": True, "skip_spikes": 3.0},
    "packed": {"flat_state": True},
}  # fmt: skip


def stepped(optimizer, variables, which=range(5)):
    for i in which:
        optimizer.apply_gradients([*zip(some_grads(i), variables, strict=True)])
    return values(variables)


@pytest.mark.parametrize("name", RULES)
def test_a_step_that_is_handed_on_is_the_rule(name):
    optimizer, plain = (cls(0.1, **RULES[name]) for cls in (HANDED_ON[name], getattr(jk, name)))
    close(stepped(optimizer, two()), stepped(plain, two()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_step_that_is_handed_on_has_every_option(options):
    options = {"learning_rate": 0.1, **options}
    optimizer, plain, a, b = HANDED_ON["Adam"](**options), jk.Adam(**options), two(), two()
    close(stepped(optimizer, a), stepped(plain, b), rtol=1e-5, atol=1e-6)
    if options.get("use_ema"):
        for o, variables in ((optimizer, a), (plain, b)):
            o.finalize_variable_values(variables)
        close(values(a), values(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cls", WRITTEN)
def test_every_option(cls, options):
    options = {"learning_rate": 0.1, **options}
    a, b = two(), two()
    close(stepped(cls(**options), a), stepped(heavy_ball(**options), b), atol=1e-6)


@pytest.mark.parametrize("cls", (*WRITTEN, HANDED_ON["Adam"]))
def test_slots_in_few_bits_are_refused(cls):
    with pytest.raises(TypeError, match="`state_dtype` needs a `Rule`, which declares its slots"):
        cls(0.1, state_dtype="int8").build(two())


@pytest.mark.usefixtures("jax_defaults")  # a rate times a complex array promotes
@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("cls", (*WRITTEN, HANDED_ON["Adam"]))
def test_every_dtype(cls, dtype):
    with jax.enable_x64(dtype == "float64"):
        make = jk.Adam if cls is HANDED_ON["Adam"] else heavy_ball
        found = [stepped(o(0.1), two(dtype=jnp.dtype(dtype))) for o in (cls, make)]
        close(*([np.asarray(x, "complex128") for x in side] for side in found), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("cls", WRITTEN)
@pytest.mark.parametrize("shapes", [[()], [(0, 3)], [(3,)] * 20], ids=["scalar", "empty", "twenty"])
def test_every_number_and_shape_of_variables(cls, shapes):
    found = []
    for make in (cls, heavy_ball):
        variables = [jk.Variable(np.full(s, i + 1.0, "float32"), name=f"w{i}") for i, s in enumerate(shapes)]
        optimizer = make(0.1)
        for i in range(3):
            draw = np.random.default_rng(i)
            optimizer.apply_gradients(
                [(jnp.asarray(draw.normal(size=s), "float32"), v) for s, v in zip(shapes, variables, strict=True)]
            )
        found.append(values(variables))
    close(*found, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, 1e20])
@pytest.mark.parametrize("cls", WRITTEN)
def test_not_finite_and_large(cls, value):
    grads = [jnp.full((2, 3), value), jnp.ones(3)]
    found = []
    for make in (cls, heavy_ball):
        variables, optimizer = two(), make(0.1)
        for _ in range(2):
            optimizer.apply_gradients([*zip(grads, variables, strict=True)])
        found.append(values(variables))
    close(*found, rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"use_ema": True, "gradient_accumulation_steps": 2}, {"global_clipnorm": 0.5}], ids=str
)
@pytest.mark.parametrize("cls", (*WRITTEN, HANDED_ON["Adam"]))
def test_state_is_sharded_like_its_variable(cls, options):
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    w, plain = (jk.Variable(x, name="w") for x in (jax.device_put(jnp.ones((16, 4)), sharding), np.ones((16, 4))))
    optimizer, rule = cls(0.1, **options), (jk.Adam if cls is HANDED_ON["Adam"] else heavy_ball)(0.1, **options)
    optimizer.build([w])
    for i in range(4):
        arrays = [v.value for v in [w, *optimizer.variables] if v.value.ndim]
        assert all(x.sharding.is_equivalent_to(sharding, 2) and len(x.sharding.device_set) == 8 for x in arrays)
        g = np.random.default_rng(i).normal(size=(16, 4)).astype("float32")
        optimizer.apply_gradients([(jax.device_put(g, sharding), w)])
        rule.apply_gradients([(jnp.asarray(g), plain)])
    close(w.numpy(), plain.numpy(), atol=1e-6)


@pytest.mark.parametrize("cls", (*WRITTEN, HANDED_ON["Adam"]))
@pytest.mark.parametrize("kind", ["copy", "deepcopy", "pickle", "weights", "own", "stateless"])
def test_copies_continue(cls, kind):
    optimizer, variables = cls(0.1, use_ema=True), two()
    stepped(optimizer, variables, range(3))
    others = variables if kind == "copy" else [jk.Variable(v.value, name=v.name) for v in variables]
    makers = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}
    if kind == "stateless":
        params, state = [v.value for v in variables], [v.value for v in optimizer.variables]
        found, _ = jax.jit(optimizer.stateless_apply)(state, some_grads(3), params)
    elif kind in makers:
        found = stepped(makers[kind](optimizer), others, [3])
    else:
        twin, store = cls(0.1, use_ema=True), {}
        twin.build(others)
        if kind == "weights":
            twin.set_weights(optimizer.get_weights())
        else:
            optimizer.save_own_variables(store)
            twin.load_own_variables(store)
        found = stepped(twin, others, [3])
    close(found, stepped(cls(0.1, use_ema=True), two(), range(4)), atol=1e-6)


def test_the_step_of_a_class_is_one_program():
    """It reads and writes as many bytes as the rule's: a step is limited by them."""
    for cls, rule in ((Keras3, heavy_ball), (Tf2, heavy_ball), (HANDED_ON["Adam"], jk.Adam)):
        costs = []
        for make in (cls, rule):
            optimizer, variables = make(0.1), [jk.Variable(np.ones(1000, "float32"), name="w")]
            for _ in range(3):
                optimizer.apply_gradients([(jnp.ones(1000), variables[0])])
            call = optimizer._prepare_step({"w": jnp.ones(1000)})
            compiled = jax.jit(optimizer._kernel().program.bare_step)
            analysis = compiled.lower(call.params, call.state, call.grads, call.hyper).compile().cost_analysis()
            costs.append(analysis["bytes accessed"])
            if make is cls:
                assert optimizer._kernel().compiled.step_donating._cache_size() == 1
        assert costs[0] <= 1.01 * costs[1], (cls, costs)
