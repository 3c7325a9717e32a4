"""Written by `python -m docs.generator.stubs`, from the rules. Not by hand."""

# fmt: off
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from jax import Array

from jaxopt_keras.interop.keras.adapter import Adapter
from jaxopt_keras.interop.keras.callback import HistoryCallback as HistoryCallback
from jaxopt_keras.interop.keras.wrappers import as_keras as as_keras
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.optimizers import CommonOptions, Number, Rate
from jaxopt_keras.pure.kernel import Kernel
from jaxopt_keras.stateful.optimizer import Optimizer

CLASSES: dict[str, type[Adapter]]
MODIFIED: dict[str, type[Adapter]]

class ACProp(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-16,
        weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class AdaBelief(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-16,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adadelta(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, rho: Number = 0.95, epsilon: Number = 1e-07,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adafactor(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_2_decay: Number = -0.8, epsilon_1: Number = 1e-30,
        epsilon_2: Number = 0.001, clip_threshold: Number = 1.0, relative_step: bool = True,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        min_dim_size_to_factor: int | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Adagrad(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, initial_accumulator_value: Number = 0.1, epsilon: Number = 1e-07,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-07,
        amsgrad: bool = False, weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        eps_root: Number = 0.0, **options: Unpack[CommonOptions],
    ) -> None: ...

class AdamMini(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        blocks: Any = (), weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adamax(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-07,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class AdaMuon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.02, adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.999,
        adam_weight_decay: Number | None = 0.01, epsilon: Number = 1e-08, weight_decay: Number | None = 0.01, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: Number = 3.4445,
        muon_b: Number = -4.775, muon_c: Number = 2.0315, adam_lr_ratio: Number = 1.0, momentum: Number = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: Number | None = 0.2, beta_2: Number = 0.999,
        variant: Literal["authors"] = "authors",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device",
        scale: Literal["rms", "keller", "spectral"] = "rms", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, signed: bool = False, **options: Unpack[CommonOptions],
    ) -> None: ...

class AdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, weight_decay: Number | None = 0.004, beta_1: Number = 0.9,
        beta_2: Number = 0.999, epsilon: Number = 1e-07, amsgrad: bool = False, *,
        variant: Literal["keras", "optax"] = "keras", eps_root: Number = 0.0, **options: Unpack[CommonOptions],
    ) -> None: ...

class Adan(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.98, beta_2: Number = 0.92, beta_3: Number = 0.99,
        epsilon: Number = 1e-08, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class AdEMAMix(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, beta_3: Number = 0.9999,
        alpha: Number = 2.0, beta3_warmup: int | None = None, alpha_warmup: int | None = None, epsilon: Number = 1e-08,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class ADOPT(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.9999, epsilon: Number = 1e-06,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class APOLLO(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-06,
        rank: int = 256, update_proj_gap: int = 200, scale: Number = 1.0,
        proj_type: Literal["std", "reverse_std"] = "std", scale_type: Literal["channel", "tensor"] = "channel",
        proj: Literal["random", "svd"] = "random", scale_front: bool = False, disable_nl: bool = False,
        weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class COCOB(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, alpha: Number = 100.0, epsilon: Number = 1e-08,
        weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class DAdaptAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        use_bias_correction: bool = False, d0: Number = 1e-06, growth_rate: Number | None = None,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Dion(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Number = 0.95, rank_fraction: Any = 1.0, epsilon: Number = 1e-08,
        adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.95, adam_weight_decay: Number | None = 0.01,
        adam_lr_ratio: Number = 1.0, exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True,
        weight_decay: Number | None = 0.01, *, variant: Literal["authors"] = "authors",
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Dion2(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.95,
        adam_weight_decay: Number | None = 0.01, epsilon: Number = 1e-08, weight_decay: Number | None = 0.01, *,
        scale: Literal["rms", "keller", "spectral"] = "spectral", exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True, muon_a: Number = 3.4445, muon_b: Number = -4.775, muon_c: Number = 2.0315,
        adam_lr_ratio: Number = 1.0, momentum: Number = 0.95, ns_steps: int = 5, nesterov: bool = True,
        rms_rate: Number | None = 0.2, fraction: float = 0.25, variant: Literal["authors"] = "authors",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class DoG(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, reps_rel: Number = 1e-06, epsilon: Number = 1e-08,
        init_eta: Number | None = None, weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class DoWG(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, init_estim_sq_dist: Number | None = None, epsilon: Number = 0.0001,
        weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class Fromage(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, min_norm: Number = 1e-06, weight_decay: Number | None = None, *,
        variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class Ftrl(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, learning_rate_power: Number = -0.5, initial_accumulator_value: Number = 0.1,
        l1_regularization_strength: Number = 0.0, l2_regularization_strength: Number = 0.0,
        l2_shrinkage_regularization_strength: Number = 0.0, beta: Number = 0.0, weight_decay: Number | None = None, *,
        variant: Literal["keras"] = "keras", **options: Unpack[CommonOptions],
    ) -> None: ...

class GaLore(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-06,
        rank: int = 128, update_proj_gap: int = 200, scale: Number = 0.25,
        proj_type: Literal["std", "reverse_std"] = "std", weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Grams(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-06,
        weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Kron(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0003, beta_1: Number = 0.9,
        preconditioner_update_probability: Number | None = None, max_size_triangular: int = 8192,
        min_ndim_triangular: int = 2, memory_save_mode: Literal[None, "smart_one_diag", "one_diag", "all_diag"] = None,
        momentum_into_precond_update: bool = True, precond_lr: Number = 0.1, precond_init_scale: Number = 1.0,
        merge_dims: bool = True, weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Lamb(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-07,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras", eps_root: Number = 0.0,
        **options: Unpack[CommonOptions],
    ) -> None: ...

class LaProp(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0004, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-15,
        weight_decay: Number | None = None, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class LARS(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, momentum: Number = 0.9, trust_coefficient: Number = 0.001,
        epsilon: Number = 1e-08, nesterov: bool = False, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Lion(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.99,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class MADGRAD(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Number = 0.9, epsilon: Number = 1e-06,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class MARSAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.003, beta_1: Number = 0.95, beta_2: Number = 0.99, epsilon: Number = 1e-08,
        gamma: Number = 0.025, adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.95,
        adam_weight_decay: Number | None = 0.1, adam_lr_ratio: Number = 1.0, weight_decay: Number | None = None, *,
        variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Muon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.999,
        adam_weight_decay: Number | None = 0.004, epsilon: Number = 1e-07, weight_decay: Number | None = 0.004, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: Number = 3.4445,
        muon_b: Number = -4.775, muon_c: Number = 2.0315, adam_lr_ratio: Number = 1.0, momentum: Number = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: Number | None = 0.2,
        variant: Literal["keras", "optax"] = "keras",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device",
        scale: Literal["rms", "keller", "spectral"] = "rms", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Nadam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-07,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras", eps_root: Number = 0.0,
        **options: Unpack[CommonOptions],
    ) -> None: ...

class NorMuon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.02, adam_beta_1: Number = 0.9, adam_beta_2: Number = 0.95,
        adam_weight_decay: Number | None = 0.0, epsilon: Number = 1e-10, weight_decay: Number | None = None, *,
        scale: Literal["rms", "keller", "spectral"] = "keller", exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True, muon_a: Number = 3.4445, muon_b: Number = -4.775, muon_c: Number = 2.0315,
        adam_lr_ratio: Number = 1.0, momentum: Number = 0.95, ns_steps: int = 5, nesterov: bool = True,
        rms_rate: Number | None = 0.2, beta_2: Number = 0.95, variant: Literal["authors"] = "authors",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class NovoGrad(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.95, beta_2: Number = 0.98, epsilon: Number = 1e-08,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class OptimisticAdam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        alpha: Number = 1.0, beta: Number = 1.0, nesterov: bool = True, weight_decay: Number | None = None, *,
        variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class OptimisticGradientDescent(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, alpha: Number = 1.0, beta: Number = 1.0, weight_decay: Number | None = None,
        *, variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class Prodigy(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, beta_1: Number = 0.9, beta_2: Number = 0.999, beta_3: Number | None = None,
        epsilon: Number = 1e-08, use_bias_correction: bool = False, safeguard_warmup: bool = False, d0: Number = 1e-06,
        d_coef: Number = 1.0, growth_rate: Number | None = None, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class RAdam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        degenerated_to_sgd: bool = False, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class RMSprop(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, rho: Number = 0.9, momentum: Number = 0.0, epsilon: Number = 1e-07,
        centered: bool = False, weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Rprop(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, eta_minus: Number = 0.5, eta_plus: Number = 1.2,
        min_step_size: Number = 1e-06, max_step_size: Number = 50.0, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class ScheduleFreeAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0025, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        warmup_steps: int = 0, weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        eps_root: Number = 0.0, **options: Unpack[CommonOptions],
    ) -> None: ...

class SGD(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Number = 0.0, nesterov: bool = False,
        weight_decay: Number | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Shampoo(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, beta_1: Number = 0.9, beta_2: Number = 1.0, epsilon: Number = 1e-12,
        precondition_frequency: int = 1, max_preconditioner_dim: int = 1024, grafting: Literal["adam", "none"] = "adam",
        grafting_beta_2: Number = 0.999, grafting_epsilon: Number = 1e-08, weight_decay: Number | None = None, *,
        variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Signum(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: Number = 0.9, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class SimplifiedAdEMAMix(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0001, beta_1: Number = 0.99, beta_2: Number = 0.95, alpha: Number = 0.0,
        epsilon: Number = 1e-08, weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class SM3(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, momentum: Number = 0.9, epsilon: Number | None = None,
        weight_decay: Number | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class SOAP(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.003, beta_1: Number = 0.95, beta_2: Number = 0.95,
        shampoo_beta: Number | None = None, epsilon: Number = 1e-08, precondition_frequency: int = 10,
        max_precond_dim: int = 10000, kl: bool = False, weight_decay: Number | None = 0.01, *,
        variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class StableAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: Number = 0.9, beta_2: Number = 0.99, epsilon: Number = 1e-06,
        weight_decay: Number | None = 0.01, *, variant: Literal["authors"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Yogi(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 0.001,
        initial_accumulator_value: Number = 1e-06, weight_decay: Number | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class AdaptiveClip(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, clipping: Number = 0.01, eps: Number = 0.001, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class ASAM(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, rho: Number = 0.5, eta: Number = 0.01, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Cautious(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, least: Number = 0.001, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class CautiousDecay(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Centralized(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Hyperball(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Lookahead(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, la_steps: int = 5, la_alpha: Number = 0.8, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Mars(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, gamma: Number = 0.025, beta: Number = 0.95, clip: bool = True,
        exact: bool = False, *, learning_rate: Rate | None = None, weight_decay: Number | None = None,
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Noisy(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, eta: Number = 0.01, gamma: Number = 0.55, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class OrthoGrad(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, eps: Number = 1e-30, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class ReduceOnPlateau(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, factor: Number = 0.1, patience: int = 10, rtol: Number = 0.0001,
        atol: Number = 0.0, cooldown: int = 0, accumulation_size: int = 1, min_scale: Number = 0.0, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class SAM(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, rho: Number = 0.05, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class ScaledRate(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, pattern: str | Sequence[str] = (), factor: Number = 1.0, *,
        learning_rate: Rate | None = None, weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class ScheduleFree(Adapter):
    def __init__(
        self, inner: Rule | Kernel | Optimizer, momentum: Number = 0.9, weight_decay_at_y: Number = 0.0,
        r: Number = 0.0, weight_lr_power: Number = 2.0, *, learning_rate: Rate | None = None,
        weight_decay: Number | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class LBFGS(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, memory_size: int = 10, scale_init_precond: bool = True,
        weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax",
        linesearch: Literal["zoom", "none"] = "zoom", max_linesearch_steps: int = 20,
        max_learning_rate: Number | None = None, tol: Number = 0.0, increase_factor: Number = 2.0,
        slope_rtol: Number = 0.0001, curv_rtol: Number = 0.9, approx_dec_rtol: Number | None = 1e-06,
        stepsize_precision: Number = 1e-05, initial_guess_strategy: Literal["one", "keep"] = "one",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class MoMo(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, beta: Number = 0.9, lower_bound: Number = 0.0, adapt_lower_bound: bool = False,
        weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class MoMoAdam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, beta_1: Number = 0.9, beta_2: Number = 0.999, epsilon: Number = 1e-08,
        lower_bound: Number = 0.0, adapt_lower_bound: bool = False, weight_decay: Number | None = None, *,
        variant: Literal["optax"] = "optax", **options: Unpack[CommonOptions],
    ) -> None: ...

class PolyakSGD(Adapter):
    def __init__(
        self, learning_rate: Rate = 1.0, max_learning_rate: Number = 1.0, f_min: Number = 0.0, eps: Number = 0.0,
        plus: bool = False, weight_decay: Number | None = None, *, variant: Literal["optax"] = "optax",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class SophiaG(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0001, beta_1: Number = 0.965, beta_2: Number = 0.99, rho: Number = 0.04,
        bs: Number = 5120.0, hess_interval: int = 10, weight_decay: Number | None = 0.1, *,
        variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

__all__ = [
    "ACProp", "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamMini", "Adamax", "AdaMuon", "AdamW", "Adan",
    "AdEMAMix", "ADOPT", "APOLLO", "COCOB", "DAdaptAdamW", "Dion", "Dion2", "DoG", "DoWG", "Fromage", "Ftrl", "GaLore",
    "Grams", "Kron", "Lamb", "LaProp", "LARS", "Lion", "MADGRAD", "MARSAdamW", "Muon", "Nadam", "NorMuon", "NovoGrad",
    "OptimisticAdam", "OptimisticGradientDescent", "Prodigy", "RAdam", "RMSprop", "Rprop", "ScheduleFreeAdamW", "SGD",
    "Shampoo", "Signum", "SimplifiedAdEMAMix", "SM3", "SOAP", "StableAdamW", "Yogi", "AdaptiveClip", "ASAM", "Cautious",
    "CautiousDecay", "Centralized", "Hyperball", "Lookahead", "Mars", "Noisy", "OrthoGrad", "ReduceOnPlateau", "SAM",
    "ScaledRate", "ScheduleFree", "LBFGS", "MoMo", "MoMoAdam", "PolyakSGD", "SophiaG", "as_keras",
]
