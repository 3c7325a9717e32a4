"""One's own optimizer, in three ways, with all that a built-in one has around it."""

import copy
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from jax.experimental.sparse import BCOO

import jaxopt_keras as jk
from jaxopt_keras import rules, schedules
from jaxopt_keras.language.rule import Decay, Rate, Rule, Signed
from tests.stateful.facade import close, every_kind, refused, same, some_grads, two, unchanged, values


class HeavyBall(Rule):
    """The one optimizer of this file, in four spellings: m <- mu m + g, p <- p - lr m."""

    learning_rate: Rate = 0.1
    mu: Decay = 0.9

    class State(NamedTuple):
        m: Signed

    def init(self, p):
        return self.State(jnp.zeros_like(p))

    def update(self, g, p, s, at):
        m = self.mu * s.m + g
        return -at.lr * m, self.State(m)


class Keras3(jk.Optimizer):
    traces = 0

    def __init__(self, learning_rate=0.1, mu=0.9, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.mu = mu

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.m = self.add_optimizer_variables(variables, "m")

    def update_step(self, gradient, variable, learning_rate):
        type(self).traces += 1
        m = self.m[self._get_variable_index(variable)]
        self.assign(m, self.mu * m + gradient)
        self.assign_sub(variable, learning_rate * m)


class Keras211(jk.Optimizer):
    """`update_step` without the rate."""

    traces = 0

    def build(self, var_list):
        super().build(var_list)
        self.m = {v.path: self.add_variable_from_reference(v, "m") for v in var_list}

    def update_step(self, gradient, variable):
        type(self).traces += 1
        m = self.m[variable.path]
        m.assign(0.9 * m + gradient)
        variable.assign_add(-self.learning_rate * m)


class Tf2(jk.Optimizer):
    traces = 0

    def __init__(self, learning_rate=0.1, mu=0.9, name="Tf2", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("mu", mu)

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "m")

    def _resource_apply_dense(self, grad, var):
        type(self).traces += 1
        dtype = var.dtype.base_dtype
        m = self.get_slot(var, "m")
        m_new = m.assign(self._get_hyper("mu", dtype) * m + grad)
        var.assign_sub(self._get_hyper("learning_rate", dtype) * m_new)

    def _resource_apply_sparse(self, grad, var):
        raise NotImplementedError("Sparse gradient updates are not supported.")


def of_rule(learning_rate=0.1, **options):
    return jk.Optimizer.from_rule(HeavyBall(learning_rate), **options)


WAYS = {"rule": of_rule, "Keras 3": Keras3, "Keras 2.11": Keras211, "TF 2": Tf2}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def trained(optimizer, variables, steps=(0, 1, 2)):
    for i in steps:
        optimizer.apply_gradients(zip(some_grads(i), variables, strict=True))
    return values(variables)


OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "clipnorm": 0.5},
    "average": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2, "global_clipnorm": 1.0},
    "accumulation": {"gradient_accumulation_steps": 2, "clipvalue": 0.3, "loss_scale_factor": 2.0},
    "constraint": {"constraints": {"kernel": jnp.abs}, "exclude_from_weight_decay": "bias", "weight_decay": 0.1},
}


@every_way
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_all_ways_are_one(way, options):
    optimizer, variables, twins = way(0.1, **options), two(), two()
    reference = jk.Optimizer.from_rule(rules.SGD(0.1, momentum=0.9, variant="optax"), **options)
    close(trained(optimizer, variables), trained(reference, twins), atol=1e-6)
    same(int(optimizer.iterations), int(reference.iterations))
    assert optimizer.get_slot_names() == ["m", *reference.get_slot_names()[1:]]


def test_without_compiling_is_part_of_the_config():
    for cls in (Keras3, jk.Adam, type("Mine", (jk.Adam,), {})):
        optimizer = cls(0.1, jit_compile=False)
        for twin in (cls.from_config(optimizer.get_config()), copy.deepcopy(optimizer), copy.copy(optimizer)):
            assert twin.jit_compile is False
        assert "jit_compile" not in cls(0.1).get_config()

    class Fixed(jk.Optimizer):
        def __init__(self, learning_rate=0.1, name="Fixed"):
            super().__init__(learning_rate, name=name)

        def get_config(self):
            own = super().get_config()
            return {n: own[n] for n in ("learning_rate", "name", "jit_compile")}

    optimizer = Fixed()
    optimizer.jit_compile = False
    assert Fixed.from_config(optimizer.get_config()).jit_compile is False  # not an argument of its `__init__`


@every_way
@pytest.mark.parametrize("rate", [schedules.PolynomialDecay(0.1, 4), lambda: 0.25], ids=["schedule", "function"])
def test_rates_are_run_time_values(way, rate):
    optimizer, reference = way(rate), jk.SGD(rate, momentum=0.9, variant="optax")
    close(trained(optimizer, two()), trained(reference, two()), atol=1e-6)


@every_way
def test_hooks_run_compiled(way):
    optimizer, variables = way(0.1, clipnorm=1.0), two()
    trained(optimizer, variables, [0])
    traces = getattr(way, "traces", 0)
    trained(optimizer, variables)
    for rate in (0.2, np.float32(0.3), schedules.CosineDecay(0.1, 4), lambda: 0.5):
        optimizer.learning_rate = rate
        trained(optimizer, variables, [0])
    optimizer.clipnorm = 0.5
    optimizer.iterations = 9
    trained(optimizer, variables, [0])
    if way is Tf2:
        optimizer.mu = 0.5
        trained(optimizer, variables, [0])
    assert getattr(way, "traces", 0) == traces
    assert optimizer._kernel().compiled.step_donating._cache_size() == 1


@every_kind
@every_way
def test_every_kind_of_variable(way, kind):
    close(trained(way(0.1), two(kind)), trained(way(0.1), two()))


@every_way
def test_half_precision_is_computed_in_float32(way):
    variables = two(dtype=jnp.bfloat16)
    optimizer = way(0.1)
    trained(optimizer, variables)
    assert optimizer.get_slot(variables[0], "m").dtype == "float32" and variables[0].value.dtype == "bfloat16"


@every_way
def test_stateless(way):
    optimizer, variables = way(0.1, weight_decay=0.1), two()
    trained(optimizer, variables)
    own, params = [v.value for v in optimizer.variables], [v.value for v in variables]
    with unchanged(optimizer, *variables):
        result = jax.jit(optimizer.stateless_apply)(own, some_grads(), params)
    optimizer.apply(some_grads(), variables)
    close(result[0], values(variables))
    close(result[1], [v.numpy() for v in optimizer.variables])


@every_way
def test_sparse_gradients_mean_their_dense_equal(way):
    if way is Tf2:
        pytest.skip("it refuses them, below")
    sparse, dense = two(), two()
    rows = jk.IndexedSlices(jnp.ones((3, 3)), jnp.array([1, 1, 0]))
    for optimizer, variables, g in [(way(0.1), sparse, rows), (way(0.1), dense, jnp.array([[1.0] * 3, [2.0] * 3]))]:
        for _ in range(2):
            optimizer.apply([g, some_grads()[1]], variables)
    close(values(sparse), values(dense))


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_a_sparse_hook_gets_distinct_rows():
    class Rows(Tf2):
        seen = []

        def _resource_apply_sparse(self, grad, var, indices):
            self.seen.append((grad.shape, indices.shape))
            var.assign(var.value.at[indices].add(-grad))

    w = jk.Variable(np.zeros((3, 2)), name="w")
    optimizer = Rows()
    optimizer.apply([jk.IndexedSlices(np.ones((3, 2)), np.array([2, 0, 2]))], [w])
    assert w.numpy().tolist() == [[-1, -1], [0, 0], [-2, -2]]
    optimizer.apply([BCOO.fromdense(jnp.ones((3, 2)), n_dense=1)], [w])
    assert w.numpy().tolist() == [[-2, -2], [-1, -1], [-3, -3]]
    assert optimizer.seen == [((3, 2), (3,))] * 2


def test_a_hook_that_refuses_sparse_gradients():
    optimizer, variables = Tf2(), two()
    trained(optimizer, variables)
    with refused(NotImplementedError, "Sparse gradient updates are not supported", optimizer, *variables):
        optimizer.apply([jk.IndexedSlices(np.ones((1, 3)), np.array([1])), some_grads()[1]], variables)


class Failing(Keras3):
    def __init__(self, when):
        super().__init__()
        self.when, self.notes = when, []

    def build(self, variables):
        super().build(variables)
        if self.when == "build":
            raise OSError("in build")

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        self.note = 1
        self.notes.append("seen")
        if self.when == "update_step" and variable.name == "bias":
            raise OSError("in update_step")


@pytest.mark.parametrize("when", ["build", "update_step"])
@pytest.mark.parametrize("built", [False, True])
def test_a_hook_that_raises_leaves_everything(when, built):
    optimizer, variables = Failing(when), two()
    if built:
        optimizer.when = None
        trained(optimizer, variables)
        optimizer.when = when
        if when == "build":
            return  # it has run already
    attributes = {k: copy.copy(v) for k, v in vars(optimizer).items() if k in ("m", "note", "notes")}
    with refused(OSError, f"in {when}", optimizer, *variables):
        optimizer.apply(some_grads(), variables)
    assert {k: v for k, v in vars(optimizer).items() if k in ("m", "note", "notes")} == attributes
    assert not optimizer._in_hooks
    optimizer.when = None
    trained(optimizer, variables)
    assert optimizer.iterations == (6 if built else 3)


def test_a_hook_may_keep_notes_without_being_traced_again():
    class Noting(Keras3):
        traces = 0

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)
            self.seen = [*self.__dict__.get("seen", ()), variable.name]

    optimizer, variables = Noting(), two()
    trained(optimizer, variables)
    assert Noting.traces == 2 and optimizer.seen == ["kernel", "bias"]  # in the order of the variables


def test_private_attributes_are_the_subclass_s_own():
    class Scaled(Tf2):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._rate = 0.5  # a name that one thinks of

        def _resource_apply_dense(self, grad, var):
            super()._resource_apply_dense(self._rate * grad, var)

    w, v = jk.Variable([1.0, 2.0]), jk.Variable([1.0, 2.0])
    optimizer = Scaled()
    optimizer.apply_gradients([(jnp.ones(2), w)])
    Tf2().apply_gradients([(jnp.full(2, 0.5), v)])
    assert w.numpy().tolist() == v.numpy().tolist() and optimizer._rate == 0.5


@pytest.mark.parametrize("name", ["_state", "_rule", "_keys", "_views", "_step"])
def test_a_private_name_that_is_taken_is_refused(name):
    with pytest.raises(AttributeError, match=f"`{name}` is reserved.*Received: {name}=0.5. Choose another"):
        setattr(Tf2(), name, 0.5)


def test_a_changed_attribute_is_traced_anew():
    optimizer, variables = Keras3(mu=0.9), two()
    trained(optimizer, variables)
    optimizer.mu = 0.0
    before, grads = values(variables), some_grads(9)
    optimizer.apply(grads, variables)
    close(values(variables), [x - 0.1 * g for x, g in zip(before, grads, strict=True)])


def test_hooks_may_make_nothing():
    class Late(jk.Optimizer):
        def __init__(self, make):
            super().__init__(0.1)
            self.make = make

        def update_step(self, gradient, variable, learning_rate):
            self.make(self, variable)

    for make in (
        lambda o, v: o.add_slot(v, "m"),
        lambda o, v: o.add_variable((), name="count"),
        lambda o, v: o._set_hyper("mu", 0.5),
        lambda o, v: o.add_slot(jk.Variable(1.0), "m"),
    ):
        optimizer, variables = Late(make), two()
        with refused(ValueError, "A hook of Late creates a slot.*`_create_slots`", optimizer, *variables):
            optimizer.apply(some_grads(), variables)


def test_hooks_may_not_use_unknown_variables():
    stranger = jk.Variable(1.0, name="stranger")

    class Curious(jk.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            variable.assign_sub(stranger * gradient)

    optimizer, variables = Curious(), two()
    with refused(ValueError, r"variables that the optimizer does not have: \['stranger'\]", optimizer, *variables):
        optimizer.apply(some_grads(), variables)


def test_hooks_read_and_write_all_that_is_the_optimizers():
    class Everything(jk.Optimizer):
        def build(self, variables):
            super().build(variables)
            self.all = variables
            self.total = self.add_variable((), name="total")

        def update_step(self, gradient, variable, learning_rate):
            self.total.assign_add(jnp.sum(gradient))
            variable.assign_sub(learning_rate * gradient)
            if variable is self.all[0]:
                self.all[1].assign_add(jnp.ones(3))  # one without gradient

    for kind in ("ours", "keras", "nnx", "ref"):
        kernel, bias = two(kind)
        optimizer = Everything(0.5)
        optimizer.apply([jnp.zeros((2, 3)), jnp.zeros(3)], [kernel, bias])
        before = values([bias])[0]
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([jnp.ones((2, 3)), None], [kernel, bias])
        close(values([bias])[0], before + 1)
        assert float(optimizer.total) == 6


def test_the_clock_and_the_rate_inside_a_hook():
    class Clocked(jk.Optimizer):
        def update_step(self, gradient, variable, learning_rate):
            step = jnp.asarray(self.iterations.value, float)
            variable.assign_sub(step + 100 * self.learning_rate + 0 * learning_rate * gradient)

    optimizer, w = Clocked(schedules.InverseTimeDecay(1.0, 1, 1.0)), jk.Variable(0.0)
    seen = []
    for _ in range(3):
        optimizer.apply([1.0], [w])
        seen.append(float(w))
    close(seen, [-100, -151, -186.33333], rtol=1e-5)


def test_no_hook_at_all():
    class Nothing(jk.Optimizer):
        pass

    optimizer, variables = Nothing(), two()
    text = r"Nothing needs `update_step\(self, gradient, variable, learning_rate\)`"
    with refused(NotImplementedError, text, optimizer, *variables):
        optimizer.apply(some_grads(), variables)


def test_super_init_comes_first():
    class Hasty(jk.Optimizer):
        def __init__(self):
            self.mu = 0.5
            super().__init__()

    with pytest.raises(
        RuntimeError, match=r"`Hasty.__init__` must call `super\(\).__init__\(\)` first. Received: mu=0.5"
    ):
        Hasty()


def test_build_hooks_and_new_variables():
    kernel, bias = two()
    with_slots = Tf2()
    with_slots.apply([some_grads()[0]], [kernel])
    with_slots.apply(some_grads(), [kernel, bias])  # `_create_slots` is called for what is new
    assert with_slots.get_slot(bias, "m").shape == (3,)
    for early in (False, True):
        built = Keras3()
        if early:
            built.build([kernel])
        built.apply([some_grads()[0]], [kernel])
        with refused(
            ValueError, r"Keras3 was built for \['kernel'\]. Received: new variables \['bias'\]", built, kernel
        ):
            built.apply(some_grads(), [kernel, bias])


@every_way
def test_built_early_is_as_built_late(way):
    early, a, b = way(0.1), two(), two()
    early.build(a)
    close(trained(early, a), trained(way(0.1), b))


@every_way
def test_options_changed_later_keep_the_slots(way):
    optimizer, variables = way(0.1), two()
    trained(optimizer, variables)
    m = optimizer.get_slot(variables[0], "m").numpy()
    optimizer.use_ema = True
    optimizer.clipnorm = 1.0
    same(optimizer.get_slot(variables[0], "m").numpy(), m)
    trained(optimizer, variables)
    optimizer.use_ema = False
    assert optimizer.get_slot_names() == ["m"]


# --- hyperparameters of TF 2 ------------------------------------------------------------------------------------------


def test_hyperparameters_of_tf2():
    optimizer = Tf2(learning_rate=0.25, mu=0.5)
    assert float(optimizer._get_hyper("mu")) == 0.5 == float(optimizer.mu)
    assert optimizer._get_hyper("mu", jnp.bfloat16).dtype == "bfloat16"
    assert float(optimizer._get_hyper("learning_rate")) == 0.25 == float(optimizer.lr)
    optimizer.mu = 0.75  # routed, as in TF 2
    assert float(optimizer._get_hyper("mu")) == 0.75 and optimizer._serialize_hyperparameter("mu") == 0.75
    optimizer._set_hyper("mu", jnp.float32(0.25))
    optimizer.clipnorm = 1.0
    assert float(optimizer.mu) == 0.25
    optimizer.mu.assign(0.125)
    optimizer.clipnorm = None
    assert float(optimizer.mu) == 0.125
    with refused(TypeError, "`mu` must be a number. Received: mu='a'", optimizer):
        optimizer.mu = "a"
    assert Tf2(lr=0.5).learning_rate == 0.5
    decayed = Tf2(decay=0.5)
    assert decayed.learning_rate == np.float32(0.1)  # what `_set_hyper` said last


def test_tf2_rates_and_names():
    class Named(jk.Optimizer):
        def __init__(self, name="Named", **kwargs):
            super().__init__(name, **kwargs)

        def _resource_apply_dense(self, grad, var):
            var.assign_sub(self._decayed_lr(var.dtype) * grad)

    assert Named().name == "Named" and Named(name="other").name == "other"
    optimizer, w = Named(lr=0.5, decay=1.0), jk.Variable(0.0)
    seen = []
    for _ in range(3):
        before = float(w)
        optimizer.apply([1.0], [w])
        seen.append(before - float(w))
    close(seen, [0.5, 0.25, 0.5 / 3], rtol=1e-5)
    with pytest.raises(TypeError, match="Named has no argument `momentum`"):
        Named(momentum=0.5)
    with pytest.raises(TypeError, match="no argument `lr`. Received: lr=0.5. Did you mean `learning_rate`"):
        Keras3(lr=0.5)


def test_dtypes_of_tf2():
    seen = []

    class Typed(jk.Optimizer):
        def _resource_apply_dense(self, grad, var):
            dtype = var.dtype
            seen.append(dtype)
            assert dtype == dtype.base_dtype == jnp.float32 and dtype != jnp.float16 and dtype.name == "float32"
            assert jnp.zeros(3, dtype).dtype == np.float32 and hash(dtype) == hash(np.dtype("float32"))
            assert keras.ops.cast(1, dtype).dtype == np.float32
            var.assign_sub(grad)

    for kind in ("ours", "keras"):
        Typed().apply(some_grads(), two(kind))
    assert len(seen) == 4


# --- the two programs that people copy --------------------------------------------------------------------------------


class tf:  # what they use of it; `interop.tensorflow` has more
    reshape = staticmethod(lambda x, shape: jnp.reshape(jnp.asarray(x), shape))
    cast = staticmethod(lambda x, dtype: jnp.asarray(x, dtype) if not hasattr(x, "value") else x.value.astype(dtype))


class SimpleGD(jk.Optimizer):
    def __init__(self, learning_rate=0.01, name="SimpleGD", **kwargs):
        super().__init__(name, **kwargs)
        self._learning_rate = self._initial_learning_rate = learning_rate

    def _resource_apply_dense(self, grad, var):
        var_dtype = var.dtype.base_dtype
        lr_t = tf.cast(self._learning_rate, var_dtype)
        var.assign_sub(lr_t * grad)

    def _resource_apply_sparse(self, grad, var):
        raise NotImplementedError("Sparse gradient updates are not supported.")

    def get_config(self):
        config = {
            "learning_rate": self._initial_learning_rate,
        }
        return config


class TestGD(jk.Optimizer):
    __test__ = False

    def __init__(self, rad=0.01, use_locking=False, name="TestGD", **kwargs):
        super().__init__(name, **kwargs)
        self._radius = rad

    def build(self, var_list):
        num_dims = len(var_list)
        self._beta = (num_dims - 1) / (num_dims + 1)
        self._B_matrix = np.identity(num_dims)

    def _resource_apply_dense(self, grad, var):
        grad_flat = tf.reshape(grad, [-1])
        var_flat = tf.reshape(var, [-1])
        var_update = var_flat - 0.01 * grad_flat
        var_update_reshaped = tf.reshape(var_update, var.shape)
        var.assign(var_update_reshaped)

    def _resource_apply_sparse(self, grad, var):
        raise NotImplementedError("Sparse gradient updates are not supported.")

    def get_config(self):
        config = {
            "rad": self._radius,
        }
        return config


@every_kind
@pytest.mark.parametrize("cls", [SimpleGD, TestGD])
def test_programs_of_the_sources(cls, kind):
    optimizer, variables = cls(), two(kind)
    expected = trained(jk.SGD(0.01), two())
    close(trained(optimizer, variables), expected)
    again = cls.from_config(optimizer.get_config())
    close(trained(again, two()), expected)
    if cls is TestGD:
        assert optimizer._beta == 1 / 3 and optimizer._B_matrix.shape == (2, 2)
    twin = pickle.loads(pickle.dumps(optimizer))
    others = two(kind)
    close(trained(twin, others), expected)


def test_minimize_with_a_custom_optimizer():
    w = jk.Variable(np.ones(3))
    optimizer = SimpleGD(0.5)
    for _ in range(10):
        optimizer.minimize(lambda: jnp.sum(w.value**2) / 2, [w])
    close(w.numpy(), 0.5**10 * np.ones(3))


# --- rules and optax --------------------------------------------------------------------------------------------------


def test_from_rule_refuses():
    for wrong in (rules.Adam, "adam", jk.adam(), None):
        with pytest.raises(TypeError, match="`rule` must be an instance of a `Rule`. Received: rule="):
            jk.Optimizer.from_rule(wrong)
    with pytest.raises(TypeError, match="`tx` must have `init"):
        jk.Optimizer.from_optax("adam")


def test_a_rule_with_a_field_without_hash():
    class Scaled(HeavyBall):
        factors: Any = None

        def update(self, g, p, s, at):
            return super().update(self.factors[0] * g, p, s, at)

    rule, twins = Scaled(factors=[2.0]), two()
    optimizer, variables, kernel = jk.Optimizer.from_rule(rule), two(), jk.Kernel(rule)
    params = dict(zip("ab", values(twins), strict=True))
    optimizer.apply(some_grads(), variables)
    params, _ = kernel.step(params, kernel.init(params), dict(zip("ab", some_grads(), strict=True)))
    jk.Optimizer.from_rule(HeavyBall()).apply([2 * g for g in some_grads()], twins)
    close(values(variables), values(twins))
    close(list(params.values()), values(twins))


def test_a_rule_and_its_named_class_are_one():
    named, variables = jk.Adam(0.1, beta_1=0.5, clipnorm=1.0), two()
    of_rule, twins = jk.Optimizer.from_rule(rules.Adam(0.1, beta_1=0.5), clipnorm=1.0), two()
    same(trained(named, variables), trained(of_rule, twins))
    assert of_rule.beta_1 == 0.5
    of_rule.beta_1 = named.beta_1 = 0.25
    same(trained(named, variables), trained(of_rule, twins))


TRANSFORMATIONS = {  # more than a name and a rate: those are in test_interop_optax.py
    "adamw with a schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 5), weight_decay=0.1),
    "chain": lambda: optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_lion(), optax.scale(-0.1)),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=1),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "injected": lambda: optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1),
    "masked": lambda: optax.masked(optax.sgd(0.1), {"kernel": True, "bias": False}),
}


@pytest.mark.usefixtures("jax_defaults")  # optax's arithmetic promotes
@pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_from_optax_is_optax(make):
    variables = two()
    optimizer, tx = jk.Optimizer.from_optax(make()), make()
    params = {v.name: v.value for v in variables}
    state = tx.init(params)
    for i in range(4):
        grads = dict(zip(("kernel", "bias"), some_grads(i), strict=True))
        optimizer.apply(grads.values(), variables)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    close({v.name: v.numpy() for v in variables}, params)


def test_from_optax_with_options():
    options = {"clipnorm": 0.5, "use_ema": True, "gradient_accumulation_steps": 2, "constraints": {"kernel": jnp.abs}}
    ours = jk.Optimizer.from_rule(rules.SGD(0.1), **options)
    theirs, variables, twins = jk.Optimizer.from_optax(optax.sgd(0.1), **options), two(), two()
    close(trained(theirs, variables, range(5)), trained(ours, twins, range(5)))
    same(theirs.get_slot(variables[0], "average").numpy().shape, (2, 3))
    theirs.finalize_variable_values(variables)
    ours.finalize_variable_values(twins)
    close(values(variables), values(twins))
    decaying = jk.Optimizer.from_optax(optax.sgd(0.1), weight_decay=0.1)
    with refused(ValueError, "`weight_decay` needs a learning rate.*optax.add_decayed_weights", decaying, *variables):
        decaying.apply(some_grads(), variables)


@pytest.mark.usefixtures("jax_defaults")
def test_from_optax_takes_all_variables_at_once():
    optimizer, (kernel, bias) = jk.Optimizer.from_optax(optax.adam(0.1)), two()
    optimizer.build([kernel, bias])
    before = kernel.numpy()
    with pytest.warns(UserWarning, match="kernel"):
        optimizer.apply([None, some_grads()[1]], [kernel, bias])  # a gradient of zeros, but it stays
    same(kernel.numpy(), before)
    new = jk.Variable(np.ones(2), name="new")
    text = r"needs all its variables at once. Registered: \['kernel', 'bias'\]. Received: \['new'\]"
    with refused(ValueError, text, optimizer, kernel, bias, new):
        optimizer.apply([np.ones(2)], [new])
    twin = copy.deepcopy(optimizer)
    with refused(ValueError, "needs all its variables at once", twin):
        twin.apply([some_grads()[0]], [two()[0]])
    twin.build(two())
