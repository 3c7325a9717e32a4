"""Methods of Keras's optimizers that a class overrides: each has its effect, or the class is refused when it is made.

The right values are those of the same body under eager Keras.
"""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras.src.backend.jax.optimizer import JaxOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

import jaxopt_keras as jk
from jaxopt_keras.interop.keras import Adam as Adapter
from jaxopt_keras.interop.keras import as_keras
from jaxopt_keras.interop.keras.wrappers import NOT_ADAPTED
from jaxopt_keras.stateful.custom.overrides import CALLS, CREATES, HOOKS, NEVER_CALLED
from tests.stateful.facade import close, some_grads, two, values

KERAS = keras.optimizers


class ClipGradients:
    def _clip_gradients(self, grads):
        return [keras.ops.clip(g, -0.1, 0.2) for g in super()._clip_gradients(grads)]


class ClipByNorm:
    def _clip_by_norm(self, values, axes=None):
        return super()._clip_by_norm(values, axes) * 0.5


class NoDecay:
    def _apply_weight_decay(self, variables):
        pass


class DecayTwice:
    def _apply_weight_decay(self, variables):
        super()._apply_weight_decay(variables)
        super()._apply_weight_decay(variables)


class KernelsDecay:
    def _use_weight_decay(self, variable):
        return super()._use_weight_decay(variable) and "bias" not in variable.name


class HalfRate:
    def _get_current_learning_rate(self):
        return super()._get_current_learning_rate() * 0.5


class HalfAttribute:
    @property
    def learning_rate(self):
        return super().learning_rate * 0.5


class AllAtOnce:
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        total = sum(keras.ops.sum(g * g) for g in grads)
        super()._backend_update_step([g / (1 + total) for g in grads], trainable_variables, learning_rate)


class Centralized:
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient - keras.ops.mean(gradient), variable, learning_rate)


class Shrunk:
    """Decay after the step."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)
        variable.assign(0.9 * keras.ops.convert_to_tensor(variable.value))


class Applied:
    def apply(self, grads, trainable_variables=None):
        super().apply([0.25 * g for g in grads], trainable_variables)


class AppliedGradients:
    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients([(0.25 * g, v) for g, v in grads_and_vars])


BODIES = (
    ClipGradients, ClipByNorm, NoDecay, DecayTwice, KernelsDecay, HalfRate, HalfAttribute, AllAtOnce, Centralized,
    Shrunk, Applied, AppliedGradients,
)  # fmt: skip
OPTIONS = {ClipByNorm: {"clipnorm": 0.5}, ClipGradients: {"global_clipnorm": 0.7}}
NAMED = {
    "SGD": (jk.SGD, KERAS.SGD, {"momentum": 0.9}),
    "Adam": (jk.Adam, KERAS.Adam, {"amsgrad": True}),
    "Nadam": (jk.Nadam, KERAS.Nadam, {}),
    "Lion": (jk.Lion, KERAS.Lion, {}),
}


def derived(body, base):
    return type(body.__name__, (body, base), {})


def steps(optimizer, variables, count=4, apply=None):
    for i in range(count):
        pairs = [*zip(map(jnp.asarray, some_grads(i)), variables, strict=True)]
        (apply or optimizer.apply_gradients)(pairs)
    return values(variables)


def pair(body, name="SGD", **more):
    ours, theirs, own = NAMED[name]
    arguments = {"learning_rate": 0.1, "weight_decay": 0.1, **own, **OPTIONS.get(body, {}), **more}
    return derived(body, ours)(**arguments), derived(body, theirs)(**arguments)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("body", BODIES)
def test_an_override_has_keras_s_effect(body, name):
    if name != "SGD" and body not in (NoDecay, Centralized, AllAtOnce):
        pytest.skip("one rule shows it")
    ours, theirs = pair(body, name)
    plain = NAMED[name][0](learning_rate=0.1, weight_decay=0.1, **NAMED[name][2], **OPTIONS.get(body, {}))
    a, b, c = two(), two("keras"), two()
    expected = steps(theirs, b)
    close(steps(ours, a), expected, atol=1e-5)
    assert max(np.abs(x - y).max() for x, y in zip(steps(plain, c), expected, strict=True)) > 1e-3


@pytest.mark.parametrize("face", ["apply", "stateless", "as_keras"])
@pytest.mark.parametrize("body", [b for b in BODIES if b is not AppliedGradients])
def test_in_every_face(body, face):
    ours, theirs = pair(body)
    expected = steps(theirs, two("keras"))
    if face == "apply":
        variables = two()
        found = steps(ours, variables, apply=lambda pairs: ours.apply(*zip(*pairs, strict=True)))
    elif face == "stateless":
        variables = two()
        ours.build(variables)
        params, state = [v.value for v in variables], [v.value for v in ours.variables]
        step = jax.jit(ours.stateless_apply)
        for i in range(4):
            params, state = step(state, [*map(jnp.asarray, some_grads(i))], params)
        found = params
    else:
        found = steps(as_keras(ours), two("keras"))
    close(found, expected, atol=1e-5)


@pytest.mark.usefixtures("jax_defaults")  # Keras's layers promote
@pytest.mark.parametrize("adapted", [True, False])
def test_apply_is_called_in_fit(adapted):
    class Zero:
        def apply(self, grads, trainable_variables=None):
            super().apply([0.0 * g for g in grads], trainable_variables)

    optimizer = derived(Zero, Adapter)(0.5) if adapted else as_keras(derived(Zero, jk.Adam)(0.5))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    before = model.get_weights()
    model.compile(optimizer, loss="mse")
    model.fit(np.ones((8, 2)), np.ones(8), batch_size=4, epochs=2, verbose=0)
    close(model.get_weights(), before)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("name", sorted(NEVER_CALLED))
@pytest.mark.parametrize("base", [jk.Optimizer, jk.Adam, Adapter])
def test_what_would_never_be_called_is_refused(base, name):
    with pytest.raises(TypeError, match=f"`{name}` of Mine would never be called. Instead: "):
        type("Mine", (base,), {name: lambda self, *args: None})


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_an_adapter_are_refused(name):
    with pytest.raises(TypeError, match=f"`{name}` of Mine would never be called.*adapt it by `as_keras`"):
        type("Mine", (Adapter,), {name: lambda self, *args: None})


# --- every method of Keras's base classes -----------------------------------------------------------------------------

# Called by the user, by Keras's trainer or by Python: `test_what_keras_calls_is_called_here_too` shows it
FROM_OUTSIDE = set(
    """
__init__ __setattr__ __reduce__ __deepcopy__ __dir__ __getattribute__ build variables stateless_apply scale_loss
set_weights get_weights weights save_own_variables load_own_variables exclude_from_weight_decay lr
finalize_variable_values get_config from_config minimize get_slot_names get_gradients clipnorm clipvalue
global_clipnorm _compute_gradients _transform_loss
""".split()
)
KERAS_2_11 = """
_apply_weight_decay _build_index_dict _build_learning_rate _clip_gradients _compute_current_learning_rate
_create_iteration_variable _create_or_restore_slot_variable _deduplicate_sparse_grad _distributed_apply_gradients_fn
_internal_apply_gradients _overwrite_model_variables_with_average_value _process_kwargs _serialize_hyperparameter
_trackable_children _update_model_variables_moving_average _update_step _update_step_xla _use_weight_decay _var_key
add_variable add_variable_from_reference aggregate_gradients apply_gradients build compute_gradients
exclude_from_weight_decay finalize_variable_values from_config get_config iterations learning_rate load_own_variables
lr minimize save_own_variables set_weights update_step variables
""".split()
OPTIMIZER_V2 = """
__deepcopy__ __dir__ __getattribute__ __setattr__ _aggregate_gradients _assert_valid_dtypes _call_if_callable
_compute_gradients _create_all_weights _create_hypers _create_or_restore_slot_variable _create_slots
_create_slots_for_sharded_variables _decayed_lr _dense_apply_args _distributed_apply _distribution_strategy_scope
_fallback_apply_state _get_gradients _get_hyper _init_set_name _prepare _prepare_local _resource_apply_dense
_resource_apply_sparse _resource_apply_sparse_duplicate_indices _resource_scatter_add _resource_scatter_update
_restore_slot_variable _serialize_hyperparameter _set_hyper _sparse_apply_args _transform_gradients _transform_loss
_transform_unaggregated_gradients _valid_dtypes add_slot add_weight apply_gradients clipnorm clipvalue from_config
get_config get_gradients get_slot get_slot_names get_updates get_weights global_clipnorm iterations minimize
set_weights variables weights
""".split()


def methods(*classes):
    kinds = (property, classmethod, staticmethod)
    return {name for cls in classes for name, x in vars(cls).items() if callable(x) or isinstance(x, kinds)}


KERAS_3 = methods(BaseOptimizer, JaxOptimizer, keras.Optimizer)


def test_the_lists_are_those_of_tf_keras():
    pytest.importorskip("tf_keras")
    from tf_keras.src.optimizers import optimizer
    from tf_keras.src.optimizers.legacy.optimizer_v2 import OptimizerV2

    assert methods(optimizer._BaseOptimizer, optimizer.Optimizer) - {"__init__"} == {*KERAS_2_11}
    assert methods(OptimizerV2) - {"__init__"} == {*OPTIMIZER_V2}


@pytest.mark.parametrize("name", sorted({*KERAS_3, *KERAS_2_11, *OPTIMIZER_V2}))
def test_no_method_that_keras_calls_is_without_effect(name):
    """Each is called here too, or refused, or called by code outside of the base class."""
    kinds = [name in HOOKS, name in CALLS, name in NEVER_CALLED, name in CREATES, name in FROM_OUTSIDE]
    assert sum(kinds) == 1, name


def test_the_page_lists_every_method():
    page = (Path(__file__).parents[2] / "docs" / "existing_classes.md").read_text()
    named = {*HOOKS, *CALLS, *CREATES, *NEVER_CALLED, *NOT_ADAPTED, *(FROM_OUTSIDE & KERAS_3)}
    ours = {name for name in named if not name.startswith("__")} - {"weights", "get_weights", "lr"}
    assert not {name for name in ours if f"`{name}`" not in page}


@pytest.mark.parametrize("name", CREATES)
def test_what_a_rule_would_not_call_is_refused(name):
    """A class of one's own calls these itself; a named class would, in Keras."""
    for base in (jk.Adam, Adapter):
        with pytest.raises(TypeError, match=f"`{name}` of Mine would never be called.*runs a rule"):
            type("Mine", (base,), {name: lambda self, *args: None})
    type("Mine", (jk.Optimizer,), {name: lambda self, *args: None})


def recording(base, name, seen):
    """A subclass that records the calls of one method, and calls it."""
    given = inspect.getattr_static(base, name)

    def method(self, *args, **kwargs):
        seen.add(name)
        found = getattr(super(Mine, self), name)
        return found if kind is property else found(*args, **kwargs)

    kind = property if isinstance(given, property) else classmethod if isinstance(given, classmethod) else lambda x: x
    Mine = type("Mine", (base,), {name: kind(method)})
    return Mine


def life(cls, adapt, path):
    """The uses of an optimizer by user, trainer and savers, as functions by name."""
    optimizer = adapt(cls(0.1, use_ema=True, loss_scale_factor=2.0))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    file = str(path / f"{cls.__base__.__module__}.weights.h5")
    return {
        "config": lambda: cls.from_config(cls(0.1).get_config()),
        "fit": lambda: model.fit(np.ones((4, 2), "float32"), np.ones(4, "float32"), verbose=0),
        "save": lambda: model.save_weights(file),
        "load": lambda: model.load_weights(file),
        "finalize": lambda: optimizer.finalize_variable_values(model.trainable_variables),
        "exclude": lambda: adapt(cls(0.1)).exclude_from_weight_decay(var_names=["bias"]),
    }


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("adapted", [False, True], ids=["as_keras", "subclass"])
@pytest.mark.parametrize("name", sorted(FROM_OUTSIDE & KERAS_3 - {"__init__", "__setattr__", "get_slot_names"}))
def test_what_keras_calls_is_called_here_too(name, adapted, tmp_path):
    seen, found = set(), []
    ours = recording(Adapter if adapted else jk.Adam, name, seen)
    for cls, adapt in (
        (recording(KERAS.Adam, name, seen), lambda x: x),
        (ours, (lambda x: x) if adapted else as_keras),
    ):
        if adapt is as_keras and name in NOT_ADAPTED:
            with pytest.raises(TypeError, match=f"`{name}` of Mine would never be called in Keras. Instead: "):
                as_keras(cls())
            return
        called = set()
        for part, run in life(cls, adapt, tmp_path).items():
            seen.clear()
            run()
            called |= {part} if seen else set()
        found.append(called)
    assert found[0] <= found[1]


SIGNATURES = {
    "_resource_apply_sparse": ("grad", "var", "indices"),
    "_resource_apply_sparse_duplicate_indices": ("grad", "var", "indices"),
}


@pytest.mark.parametrize("name", [*HOOKS, *CALLS])
@pytest.mark.parametrize("base", [jk.Adam, jk.Optimizer])
def test_every_hook_is_called(base, name):
    called = []

    def hook(self, *args, **kwargs):
        called.append(name)
        return getattr(super(Mine, self), name)(*args, **kwargs)

    def attribute(self):
        called.append(name)
        return super(Mine, self).learning_rate

    body = {name: property(attribute) if name == "learning_rate" else hook}
    if base is jk.Optimizer:
        uses = {
            "_resource_apply_dense": lambda self, grad, var, apply_state=None: var.assign_sub(
                self._decayed_lr(var.dtype) * grad
            )
        }
        body = (
            uses | body
            if name != "_resource_apply_dense"
            else uses | {name: lambda self, grad, var: called.append(name)}
        )
        if name == "update_step":
            body = {name: lambda self, gradient, variable: called.append(name)}
        if name in ("_use_weight_decay", "_apply_weight_decay", "_get_current_learning_rate", "learning_rate"):
            body = {"update_step": lambda self, g, v, rate: v.assign_sub(rate * g), name: body[name]}
    Mine = type("Mine", (base,), body)
    optimizer, (kernel, bias) = Mine(weight_decay=0.1, clipnorm=1.0), two()
    g = jk.IndexedSlices(jnp.ones((1, 3)), jnp.array([1])) if "sparse" in name else jnp.ones((2, 3))
    optimizer.apply_gradients([(g, kernel), (jnp.ones(3), bias)])
    assert called
