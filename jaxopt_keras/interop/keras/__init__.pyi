"""Written by `python -m docs.generator.stubs`, from the rules. Not by hand."""

# fmt: off
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Unpack

from jax import Array

from jaxopt_keras.interop.keras.adapter import Adapter
from jaxopt_keras.interop.keras.wrappers import as_keras as as_keras
from jaxopt_keras.language.rule import Rule
from jaxopt_keras.optimizers import CommonOptions, Rate
from jaxopt_keras.pure.kernel import Kernel

CLASSES: dict[str, type[Adapter]]

class AdaBelief(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-16,
        weight_decay: float | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adadelta(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, rho: float = 0.95, epsilon: float = 1e-07, weight_decay: float | None = None,
        *, variant: Literal["keras", "optax"] = "keras", **options: Unpack[CommonOptions],
    ) -> None: ...

class Adafactor(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_2_decay: float = -0.8, epsilon_1: float = 1e-30,
        epsilon_2: float = 0.001, clip_threshold: float = 1.0, relative_step: bool = True,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        min_dim_size_to_factor: int | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Adagrad(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, initial_accumulator_value: float = 0.1, epsilon: float = 1e-07,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-07,
        amsgrad: bool = False, weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Adamax(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-07,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class AdaMuon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.02, adam_beta_1: float = 0.9, adam_beta_2: float = 0.999,
        adam_weight_decay: float | None = 0.01, epsilon: float = 1e-08, weight_decay: float | None = 0.01, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: float = 3.4445,
        muon_b: float = -4.775, muon_c: float = 2.0315, adam_lr_ratio: float = 1.0, momentum: float = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: float | None = 0.2, beta_2: float = 0.999,
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
        self, learning_rate: Rate = 0.001, weight_decay: float | None = 0.004, beta_1: float = 0.9,
        beta_2: float = 0.999, epsilon: float = 1e-07, amsgrad: bool = False, *,
        variant: Literal["keras", "optax"] = "keras", **options: Unpack[CommonOptions],
    ) -> None: ...

class Adan(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.98, beta_2: float = 0.92, beta_3: float = 0.99,
        epsilon: float = 1e-08, weight_decay: float | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class AdEMAMix(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, beta_3: float = 0.9999,
        alpha: float = 2.0, beta3_warmup: int | None = None, alpha_warmup: int | None = None, epsilon: float = 1e-08,
        weight_decay: float | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class ADOPT(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.9999, epsilon: float = 1e-06,
        weight_decay: float | None = None, *, variant: Literal["authors", "optax"] = "authors",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Dion2(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, adam_beta_1: float = 0.9, adam_beta_2: float = 0.95,
        adam_weight_decay: float | None = 0.01, epsilon: float = 1e-08, weight_decay: float | None = 0.01, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: float = 3.4445,
        muon_b: float = -4.775, muon_c: float = 2.0315, adam_lr_ratio: float = 1.0, momentum: float = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: float | None = 0.2,
        scale: Literal["rms", "keller", "spectral"] = "spectral", fraction: float = 0.25,
        variant: Literal["authors"] = "authors",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class Ftrl(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, learning_rate_power: float = -0.5, initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0, l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0, beta: float = 0.0, weight_decay: float | None = None, *,
        variant: Literal["keras"] = "keras", **options: Unpack[CommonOptions],
    ) -> None: ...

class Grams(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-06,
        weight_decay: float | None = None, *, variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Lamb(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-07,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class LaProp(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0004, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-15,
        weight_decay: float | None = None, *, variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Lion(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, weight_decay: float | None = None,
        *, variant: Literal["keras", "optax"] = "keras", **options: Unpack[CommonOptions],
    ) -> None: ...

class Muon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, adam_beta_1: float = 0.9, adam_beta_2: float = 0.999,
        adam_weight_decay: float | None = 0.004, epsilon: float = 1e-07, weight_decay: float | None = 0.004, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: float = 3.4445,
        muon_b: float = -4.775, muon_c: float = 2.0315, adam_lr_ratio: float = 1.0, momentum: float = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: float | None = 0.2,
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
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-07,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class NorMuon(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.02, adam_beta_1: float = 0.9, adam_beta_2: float = 0.95,
        adam_weight_decay: float | None = 0.0, epsilon: float = 1e-10, weight_decay: float | None = None, *,
        exclude_layers: Sequence[str] | None = None, exclude_embeddings: bool = True, muon_a: float = 3.4445,
        muon_b: float = -4.775, muon_c: float = 2.0315, adam_lr_ratio: float = 1.0, momentum: float = 0.95,
        ns_steps: int = 5, nesterov: bool = True, rms_rate: float | None = 0.2,
        scale: Literal["rms", "keller", "spectral"] = "keller", beta_2: float = 0.95,
        variant: Literal["authors"] = "authors",
        matrices: Mapping[str, str | None] | Callable[[str, tuple[int, ...]], str | None] | tuple[()] = (),
        iteration: str | Sequence[Sequence[float]] | Callable[[Array], Array] | None = None,
        normalization: Literal["frobenius", "schatten", "spectral", "aol"] = "frobenius", gram: bool = False,
        precision: Literal["device", "float32", "bfloat16"] = "device", cautious_decay: bool = False,
        others: Rule | Kernel | None = None, **options: Unpack[CommonOptions],
    ) -> None: ...

class RAdam(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-08,
        degenerated_to_sgd: bool = False, weight_decay: float | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class RMSprop(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-07,
        centered: bool = False, weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class ScheduleFreeAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.0025, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-08,
        warmup_steps: int = 0, weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class SGD(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float | None = None, *, variant: Literal["keras", "optax"] = "keras",
        **options: Unpack[CommonOptions],
    ) -> None: ...

class Signum(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, momentum: float = 0.9, weight_decay: float | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class StableAdamW(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, epsilon: float = 1e-06,
        weight_decay: float | None = 0.01, *, variant: Literal["authors"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

class Yogi(Adapter):
    def __init__(
        self, learning_rate: Rate = 0.01, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 0.001,
        initial_accumulator_value: float = 1e-06, weight_decay: float | None = None, *,
        variant: Literal["authors", "optax"] = "authors", **options: Unpack[CommonOptions],
    ) -> None: ...

__all__ = [
    "AdaBelief", "Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdaMuon", "AdamW", "Adan", "AdEMAMix", "ADOPT",
    "Dion2", "Ftrl", "Grams", "Lamb", "LaProp", "Lion", "Muon", "Nadam", "NorMuon", "RAdam", "RMSprop",
    "ScheduleFreeAdamW", "SGD", "Signum", "StableAdamW", "Yogi", "as_keras",
]
