"""optax as a peer."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.parity.cases import CLIPS, Case, Terms
from benchmarks.parity.histories import History, to_numpy
from benchmarks.parity.peer import Absent, Agreement, Dialect, default_promotion, load, name_of, times
from jaxopt_keras.language.rule import Rule, fields_of

# Optimizers that are missing here need no translation: the function in optax has the same name.
OPTAX = {
    "Adam": Agreement(lambda amsgrad: {}),  # `optax.amsgrad` is another function
    "AdamW": Agreement(lambda amsgrad: {}),
    "Adafactor": Agreement(lambda beta_2_decay: {"decay_rate": -beta_2_decay}),
    "Muon": Agreement(
        lambda learning_rate, adam_lr_ratio, muon_a, muon_b, muon_c: {
            "adam_learning_rate": times(adam_lr_ratio, learning_rate),
            "ns_coeffs": (muon_a, muon_b, muon_c),
        },
        pinned={"exclude_embeddings": False},
    ),
    "ACProp": Agreement(lambda epsilon: {"eps": epsilon, "eps_root": epsilon}),
    "AdaBelief": Agreement(lambda epsilon: {"eps": epsilon, "eps_root": epsilon}),
    "Adan": Agreement(lambda epsilon: {"eps": epsilon, "eps_root": epsilon}),
    "RAdam": Agreement(pinned={"beta_2": 0.9}),  # optax's length of the average has no digits left for long averages
    "Rprop": Agreement(scheduled=False),
    "GaLore": Agreement(pinned={"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8, "proj_type": "std", "rank": 2}),
    "SM3": Agreement(  # optax's fails for a number
        pinned={"epsilon": None}, scheduled=False, shapes={"kernel": (6, 4), "bias": (7,), "cube": (2, 3, 4)}
    ),
    "LARS": Agreement(pinned={"trust_coefficient": 0.5}),  # with the default steps are lost in the rounding of p
    "ScheduleFreeAdamW": Agreement(lambda warmup_steps: {"warmup_steps": warmup_steps or None}, scheduled=False),
}
OTHER_NAMES = {"OptimisticAdam": "optimistic_adam_v2"}
OPTAX_NAMES = {
    "beta_1": "b1",
    "beta_2": "b2",
    "beta_3": "b3",
    "epsilon": "eps",
    "rho": "decay",
    "epsilon_1": "eps",
    "clip_threshold": "clipping_threshold",
    "weight_decay": "weight_decay_rate",
    "adam_beta_1": "adam_b1",
    "adam_beta_2": "adam_b2",
    "momentum": "beta",
    "rms_rate": "consistent_rms",
}


class Optax:
    """The function of the same name in `optax` or `optax.contrib`, chained with transformations for the options."""

    def __init__(self) -> None:
        self.optax = load("optax")
        self.contrib = load("optax.contrib")
        self.version = self.optax.__version__

    def dialect(self, optimizer: type[Rule], amsgrad: bool = False) -> Dialect:
        name = "amsgrad" if amsgrad else OTHER_NAMES.get(optimizer.__name__, name_of(optimizer))
        function = getattr(self.optax, name, None) or getattr(self.contrib, name, None)
        if function is None:
            raise Absent(f"there is no optax.{name}")
        return Dialect(function, OPTAX_NAMES, OPTAX.get(optimizer.__name__, Agreement()))

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        if "optax" not in optimizer.variants:
            raise Absent("no variant of ours follows it")
        dialect = self.dialect(optimizer)
        names = {name for name in fields_of(optimizer) if dialect.knows(name)}
        names |= {"weight_decay", *CLIPS, "loss_scale_factor", "use_ema", "gradient_accumulation_steps"}
        names |= {"schedule"} if dialect.agreement.scheduled else set()
        return [Terms("optax", names, dialect.agreement.pinned, dialect.agreement.shapes)]

    def run(self, case: Case) -> History:
        with default_promotion():
            tx = self.transformation(case)
            params: Any = {name: jnp.asarray(p) for name, p in case.params.items()}
            state, average, history = tx.init(params), params, []

            @jax.jit
            def step(params: Any, state: Any, grads: Any) -> Any:
                updates, state = tx.update(grads, state, params)
                return self.optax.apply_updates(params, updates), state

            for count, grads in enumerate(case.grads, 1):
                params, state = step(params, state, grads)
                if case.options.get("use_ema"):
                    rate = 1 - case.options["ema_momentum"] if count > 1 else 1.0
                    average = self.optax.incremental_update(params, average, rate)
                    frequency = case.options["ema_overwrite_frequency"]
                    params = average if frequency and count % frequency == 0 else params
                history.append(to_numpy(params))
        return history

    def transformation(self, case: Case) -> Any:
        """The whole transformation but the average, which the training loop computes in optax."""
        unscale = self.optax.scale(1 / case.options.get("loss_scale_factor", 1.0))
        tx = self.optax.chain(unscale, self.clip(case), *self.decayed(case))
        k = case.options.get("gradient_accumulation_steps")
        return self.optax.MultiSteps(tx, k) if k else tx

    def clip(self, case: Case) -> Any:
        optax, options = self.optax, case.options
        if limit := options.get("global_clipnorm"):
            return optax.clip_by_global_norm(limit)
        if limit := options.get("clipvalue"):
            return optax.clip(limit)
        if limit := options.get("clipnorm"):  # the global norm, of one array at a time
            labels = {name: name for name in case.params}
            return optax.partition(dict.fromkeys(labels, optax.clip_by_global_norm(limit)), labels)
        return optax.identity()

    def decayed(self, case: Case) -> list[Any]:
        """The optimizer with its own weight decay, or followed by a decoupled one."""
        dialect = self.dialect(case.optimizer, case.hyper.get("amsgrad", False))
        arguments = dialect.arguments({"learning_rate": case.rate} | case.hyper)
        decay = case.options["weight_decay"] or 0.0
        if name := dialect.name("weight_decay"):
            return [dialect.function(**arguments, **{name: decay})]
        return [dialect.function(**arguments), self.optax.add_decayed_weights(times(-decay, case.rate))]
