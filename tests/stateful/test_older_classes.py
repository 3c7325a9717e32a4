"""Classes written for tf.keras 2.11 and for TF 2: the names that they find in their base class."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxopt_keras.interop.tensorflow.keras.optimizers.optimizer_experimental import optimizer as experimental

import jaxopt_keras as jk
import jaxopt_keras.interop.tensorflow as tf
from tests.stateful.facade import close, some_grads, two, values

pytestmark = pytest.mark.usefixtures("jax_defaults")


class Momentum211(experimental.Optimizer):
    __doc__ = f"tf.keras 2.11.{experimental.base_optimizer_keyword_args}"

    def __init__(self, learning_rate=0.1, weight_decay=0.1, jit_compile=True, name="Momentum211", **kwargs):
        super().__init__(name=name, weight_decay=weight_decay, jit_compile=jit_compile, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)

    def build(self, var_list):
        super().build(var_list)
        if hasattr(self, "_built") and self._built:
            return
        self._built = True
        self._momentums = [self.add_variable_from_reference(model_variable=v, variable_name="m") for v in var_list]
        copies = [tf.Variable(tf.cast(v, "float32")) for v in var_list]  # gives shape and dtype only
        self._others = [self.add_variable_from_reference(model_variable=v, variable_name="n") for v in copies]

    def update_step(self, gradient, variable):
        lr = tf.cast(self.learning_rate, variable.dtype)
        index = self._index_dict[self._var_key(variable)]
        m = self._momentums[index]
        m.assign_add((gradient - m) * 0.5)
        self._others[index].assign(m)
        variable.assign_sub(m * lr * tf.cast(self._iterations + 1, variable.dtype))

    def get_config(self):
        return {**super().get_config(), "learning_rate": self._serialize_hyperparameter(self._learning_rate)}


def by_hand(decay):
    params, moments = values(two()), [0, 0]
    for t in range(4):
        for i, g in enumerate(map(np.asarray, some_grads(t))):
            params[i] = params[i] * (1 - 0.25 * decay)
            moments[i] = moments[i] + (g - moments[i]) * 0.5
            params[i] = params[i] - 0.25 * (t + 1) * moments[i]
    return params


def test_keras_2_11():
    optimizer, variables = Momentum211(0.25), two()
    for t in range(4):
        optimizer.apply_gradients(zip(some_grads(t), variables, strict=True))
    close(values(variables), by_hand(0.1), rtol=1e-5)
    assert optimizer.get_config()["learning_rate"] == 0.25
    assert len(optimizer.variables) == 6 and len(optimizer._trainable_variables) == 2
    twin = Momentum211.from_config(optimizer.get_config())
    assert float(twin.learning_rate) == 0.25 and twin.weight_decay == 0.1


class Everything2(tf.keras.optimizers.Optimizer):
    """The names of `OptimizerV2`, all in one class."""

    def __init__(self, learning_rate=0.1, flag=False, none=None, scale=lambda: 2.0, name="Everything2", **kwargs):
        super().__init__(name, **kwargs)
        self._set_hyper("learning_rate", kwargs.get("lr", learning_rate))
        self._set_hyper("decay", self._initial_decay)
        self._set_hyper("weight_decay", 0.5)  # the class's own, not the option
        self._set_hyper("flag", flag)
        self._set_hyper("none", none)
        self._set_hyper("scale", scale)
        self._set_hyper("wd", jk.schedules.InverseTimeDecay(1.0, 1, 1.0))

    def _create_slots(self, var_list):
        for var in var_list:
            self.add_slot(var, "count", initializer=tf.zeros(shape=[], dtype=var.dtype))
            self.add_slot(var, "start", initializer=tf.keras.initializers.Constant(3.0))

    def _prepare_local(self, var_device, var_dtype, apply_state):
        super()._prepare_local(var_device, var_dtype, apply_state)
        apply_state[(var_device, var_dtype)]["half"] = tf.identity(self._get_hyper("weight_decay", var_dtype))

    @tf.function
    def _resource_apply_dense(self, grad, var, apply_state=None):
        device, dtype = var.device, var.dtype.base_dtype
        known = (apply_state or {}).get((device, dtype)) or self._fallback_apply_state(device, dtype)
        assert var.shape.as_list() == list(grad.shape) and grad.shape.ndims == var.shape.rank
        assert grad.dtype.base_dtype == dtype and var.ref().deref() is var and var.op.name == var.name
        count, start = self.get_slot(var, "count"), self.get_slot(var, "start")
        count.assign_add(1.0, use_locking=self._use_locking, read_value=False)
        assert self._get_hyper("flag") is False and self._get_hyper("none") is None
        wd = self._get_hyper("wd")(self.iterations)
        scale = self._get_hyper("scale", dtype) * known["half"] * known["lr_t"] * tf.cast(wd, dtype)
        with tf.control_dependencies([count]):
            change = scale * grad * count + 0 * start.read_value() + 0 * var.value() + 0 * var.read_value()
        return tf.group(var.assign_sub(change, use_locking=self._use_locking))

    def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
        self._resource_scatter_add(var, indices, -grad)
        var.scatter_sub(tf.IndexedSlices(grad, indices))
        self._resource_scatter_update(self.get_slot(var, "start"), indices, grad)


def test_tf_2():
    optimizer, variables = Everything2(lr=0.5, decay=1.0), two()
    params = values(variables)
    for t in range(3):
        optimizer.apply_gradients(zip(some_grads(t), variables, strict=True))
        rate = 0.5 / (1 + t) / (1 + t)
        params = [p - rate * np.asarray(g) * (t + 1) for p, g in zip(params, some_grads(t), strict=True)]
    close(values(variables), params, rtol=1e-5)
    assert float(optimizer._get_hyper("learning_rate")) == 0.5 and optimizer._serialize_hyperparameter("decay") == 1.0
    assert (
        optimizer.get_slot(variables[0], "count").shape == () and optimizer._serialize_hyperparameter("flag") is False
    )
    assert optimizer.get_slot(variables[0], "start").numpy().max() == 3


def test_sparse_hooks_of_tf_2():
    optimizer, w = Everything2(), jk.Variable(np.zeros((3, 2)), name="w")
    optimizer.apply_gradients([(tf.IndexedSlices(np.ones((3, 2)), np.array([2, 0, 2])), w)])
    assert w.numpy().tolist() == [[-2, -2], [0, 0], [-4, -4]]
    assert optimizer.get_slot(w, "start").numpy().tolist() == [[1, 1], [3, 3], [2, 2]]


def test_transforms_of_tf_2():
    class Transforms(tf.keras.optimizers.Optimizer):
        def _transform_gradients(self, grads_and_vars):
            return [(g * 2, v) for g, v in super()._transform_gradients(grads_and_vars)]

        def _aggregate_gradients(self, grads_and_vars):
            return [(g + 1, v) for g, v in super()._aggregate_gradients(grads_and_vars)]

        def _compute_gradients(self, loss, var_list, grad_loss=None, tape=None):
            return [(g * 10, v) for g, v in super()._compute_gradients(loss, var_list, grad_loss, tape)]

        def _transform_loss(self, loss):
            return loss * 3

        def _resource_apply_dense(self, grad, var):
            var.assign_sub(grad)

    w = jk.Variable([0.0, 1.0])
    optimizer = Transforms("t", clipvalue=4.0, gradient_transformers=[lambda pairs: [(g * 0.5, v) for g, v in pairs]])
    optimizer.apply_gradients([(jnp.array([1.0, 9.0]), w)])
    assert w.numpy().tolist() == [-2.0, -3.0]  # 2 * 0.5 * min(g + 1, 4)
    optimizer = Transforms("t")
    w.assign([0.0, 0.0])
    optimizer.minimize(lambda: jnp.sum(w.value), [w])
    assert w.numpy().tolist() == [-62.0, -62.0]  # 2 * (3 * 10 + 1)


def test_an_inner_optimizer_of_tf_2():
    class Slow(tf.keras.optimizers.Optimizer):
        def __init__(self, optimizer, name="Slow", **kwargs):
            super().__init__(name, **kwargs)
            self._optimizer = optimizer
            self._track_trackable(optimizer, "inner")

        def _create_slots(self, var_list):
            self._optimizer._create_slots(var_list=var_list)
            for var in var_list:
                self.add_slot(var, "slow", initializer=var)

        def apply_gradients(self, grads_and_vars, name=None, **kwargs):
            self._optimizer._iterations = self.iterations
            return super().apply_gradients(grads_and_vars, name, **kwargs)

        def _resource_apply_dense(self, grad, var):
            self._optimizer._resource_apply_dense(grad, var)
            slow = self.get_slot(var, "slow")
            slow.assign(0.5 * (slow + var))

        @property
        def learning_rate(self):
            return self._optimizer._get_hyper("learning_rate")

    optimizer, variables, twins = Slow(tf.keras.optimizers.Adam(0.1)), two(), two()
    plain, slow = jk.Adam(0.1), values(twins)
    for t in range(4):
        optimizer.apply_gradients(zip(some_grads(t), variables, strict=True))
        plain.apply_gradients(zip(some_grads(t), twins, strict=True))
        slow = [0.5 * (s + v) for s, v in zip(slow, values(twins), strict=True)]
    close(values(variables), values(twins), rtol=1e-5, atol=2e-6)
    close([optimizer.get_slot(v, "slow").numpy() for v in variables], slow, rtol=1e-5)
    assert int(optimizer._optimizer.iterations) == 4 and float(optimizer.learning_rate) == np.float32(0.1)


def test_raw_operations_take_hyperparameters():
    class Proximal(tf.keras.optimizers.Optimizer):
        def __init__(self, name="Proximal", **kwargs):
            super().__init__(name, **kwargs)
            for hyper, value in {"learning_rate": 0.5, "l1": 0.1, "l2": 0.2, "momentum": 0.9}.items():
                self._set_hyper(hyper, value)

        def _create_slots(self, var_list):
            for var in var_list:
                self.add_slot(var, "accumulator", initializer="ones")

        def _resource_apply_dense(self, grad, var):
            get = self._get_hyper
            accumulator = self.get_slot(var, "accumulator")
            if "kernel" in var.name:
                return tf.raw_ops.ResourceApplyProximalAdagrad(
                    var=var, accum=accumulator, lr=get("learning_rate"), l1=get("l1"), l2=get("l2"), grad=grad
                )
            return tf.raw_ops.ResourceApplyKerasMomentum(
                var=var, accum=accumulator, lr=get("learning_rate"), grad=grad, momentum=get("momentum")
            )

    variables = two()
    p, q = (np.asarray(x, float) for x in values(variables))
    Proximal().apply_gradients(zip(some_grads(), variables, strict=True))
    g, h = (np.asarray(x, float) for x in some_grads())
    rate = 0.5 / np.sqrt(1 + g * g)
    moved = p - rate * g
    right = np.sign(moved) * np.maximum(np.abs(moved) - rate * 0.1, 0) / (1 + rate * 0.2)
    close(values(variables), [right, q + 0.9 - 0.5 * h], rtol=1e-5)


def test_a_named_class_with_a_sparse_step_of_its_own():
    """It calls `_resource_scatter_update` itself, so that it may define it."""

    class Rows(tf.keras.optimizers.Adam):
        def _resource_apply_sparse(self, grad, var, indices, apply_state=None):
            return self._resource_scatter_update(var, indices, grad)

        def _resource_scatter_update(self, resource, indices, update):
            return resource.scatter_update(tf.IndexedSlices(2 * update, indices))

    w = jk.Variable(np.zeros((3, 2)), name="w")
    Rows(0.1).apply_gradients([(tf.IndexedSlices(np.ones((1, 2)), np.array([1])), w)])
    assert w.numpy().tolist() == [[0, 0], [2, 2], [0, 0]]


@pytest.mark.parametrize("options", [{}, {"use_ema": True}], ids=str)
def test_a_slot_may_have_the_name_of_an_option_s(options):
    class Averaged(tf.keras.optimizers.Optimizer):
        """A wrapper that averages: `m` is a tensor when the slot is made."""

        def __init__(self, optimizer, name="Averaged", **kwargs):
            super().__init__(name, **kwargs)
            self._optimizer = optimizer

        def _create_slots(self, var_list):
            self._optimizer._create_slots(var_list=var_list)
            for var in var_list:
                self.add_slot(var, "average", var.read_value())

        def _resource_apply_dense(self, grad, var, apply_state=None):
            assert "apply_state" in self._optimizer._dense_apply_args
            assert "indices" in self._optimizer._sparse_apply_args
            self._optimizer._resource_apply_dense(grad, var, apply_state=apply_state)
            average = self.get_slot(var, "average")
            average.assign(0.75 * average + 0.25 * var)

    optimizer, variables = Averaged(jk.SGD(0.5), **options), two()
    average, p = values(two()), values(two())
    for t in range(3):
        optimizer.apply_gradients(zip(some_grads(t), variables, strict=True))
        p = [x - 0.5 * np.asarray(g) for x, g in zip(p, some_grads(t), strict=True)]
        average = [0.75 * a + 0.25 * x for a, x in zip(average, p, strict=True)]
    close([optimizer.get_slot(v, "average").numpy() for v in variables], average, rtol=1e-5)
    close(values(variables), p, rtol=1e-5)
