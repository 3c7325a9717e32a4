"""The language of rules: slots, and `Rule`, an optimizer on one array.

A rule does not depend on how it runs over a tree of arrays (`docs/design.md`).
"""

import dataclasses
import functools
import inspect
import typing
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxopt_keras.language.clock import Clock as Clock
from jaxopt_keras.language.clock import Line as Line
from jaxopt_keras.language.fields import COMPLEMENT as COMPLEMENT
from jaxopt_keras.language.fields import OFF_AT_ZERO as OFF_AT_ZERO
from jaxopt_keras.language.fields import RATE as RATE
from jaxopt_keras.language.fields import TRACED as TRACED
from jaxopt_keras.language.fields import Amount as Amount
from jaxopt_keras.language.fields import Count as Count
from jaxopt_keras.language.fields import Decay as Decay
from jaxopt_keras.language.fields import EpsRoot as EpsRoot
from jaxopt_keras.language.fields import Field as Field
from jaxopt_keras.language.fields import Fixed as Fixed
from jaxopt_keras.language.fields import Marker as Marker
from jaxopt_keras.language.fields import Momentum as Momentum
from jaxopt_keras.language.fields import Number as Number
from jaxopt_keras.language.fields import Rate as Rate
from jaxopt_keras.language.fields import Read as Read
from jaxopt_keras.language.fields import Variant as Variant
from jaxopt_keras.language.fields import Within as Within
from jaxopt_keras.language.fields import as_scalar as as_scalar
from jaxopt_keras.language.fields import fields_of as fields_of
from jaxopt_keras.language.fields import markers as markers
from jaxopt_keras.language.fields import scheduled as scheduled
from jaxopt_keras.language.hyperparameters import Hyperparameters as Hyperparameters
from jaxopt_keras.language.hyperparameters import with_python_numbers as with_python_numbers


class Slot(NamedTuple):
    """The declaration of a slot, for storage and sharding: its sign, and which axes of the parameter it has.

    Axes that it `lacks` are not there; those that are `resized` have another length, and are not split.
    """

    nonnegative: bool = False
    exact: bool = False
    lacks: tuple[int, ...] = ()
    resized: tuple[int, ...] = ()


Signed = Annotated[Array, Slot()]
NonNegative = Annotated[Array, Slot(nonnegative=True)]
Exact = Annotated[Array, Slot(exact=True)]  # an iterate or a sum: never quantize


class Stateless(NamedTuple):
    """No slots."""


class KerasOrder(NamedTuple):
    """The order of an optimizer's arguments and arrays in Keras, where it is not the usual one."""

    signature: tuple[str, ...] = ()  # the constructor's first names, where options are among them
    slot_groups: tuple[tuple[str, ...], ...] = ()  # of `variables`; all other slots form the last group
    legacy_interleaved: bool = False  # tf.keras's `get_weights` has all slots of a variable together


@functools.cache
def slots_of(state: Any) -> dict[str, Slot]:
    """Return the declaration of each slot of a `State`."""
    hints = typing.get_type_hints(state, include_extras=True)
    return {name: next(iter(markers(hint, Slot)), Slot()) for name, hint in hints.items()}


def zeros_of(state: Any, p: Array) -> Any:
    """Return a `State` of zeros for a new parameter; slots with a default keep it."""
    kinds = slots_of(state)
    started = kinds.keys() - state._field_defaults.keys()
    return state(**{n: jnp.zeros_like(p.real if kinds[n].nonnegative else p) for n in started})


class Rule(Hyperparameters):
    """An optimizer on one array.

    Subclass it with hyperparameters as annotated fields, a `State` NamedTuple of slots, `init` and `update`. The
    arithmetic is in float32, or in float64 for a float64 parameter.

    Args:
        learning_rate: the rate: a number, or a schedule, which is a function of the step.
        variant: the library whose numbers the rule follows where libraries differ.

    >>> import jaxopt_keras as jk
    >>> class Sign(Rule):
    ...     learning_rate: Rate = 1e-3
    ...     def update(self, g, p, s, at):
    ...         return -at.lr * jnp.sign(g), s
    >>> kernel = jk.Kernel(Sign(learning_rate=0.5))
    >>> params = {"w": jnp.ones(3)}
    >>> params, state = kernel.step(params, kernel.init(params), {"w": jnp.ones(3)})
    >>> params["w"].tolist()
    [0.5, 0.5, 0.5]
    """

    # `element`: acts on each element alone; `leaf`: needs norms of its array (at.norm, at.rms); `matrix`: needs shapes.
    grain: ClassVar[Literal["element", "leaf", "matrix"]] = "element"
    variants: ClassVar[tuple[str, ...]] = ("keras", "optax")  # the first is the default
    complex_ok: ClassVar[bool] = True
    defaults: ClassVar[dict[str, Any]] = {}  # the optimizer's own defaults of common options
    required: ClassVar[tuple[str, ...]] = ()  # the options that may not be None
    # What steps must be given besides gradients. "loss": `at.loss`; "function": the loss function, for a second
    # gradient (language/second.py); "key": none, but there is a random one, `at.key`.
    takes: ClassVar[tuple[str, ...]] = ()
    keras: ClassVar[KerasOrder] = KerasOrder()
    shapes: ClassVar[Any] = ((), (2,), (256, 256), (2, 2))  # each slot of the rule exists for an array of one of these

    learning_rate: Rate = 1e-3
    variant: Variant = dataclasses.field(default="keras", kw_only=True)

    State: ClassVar[Any] = Stateless  # a NamedTuple of the slots of one array; None for an absent slot

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "variants" in vars(cls):  # declare the field before the dataclass is made
            cls.__annotations__ = {**inspect.get_annotations(cls), "variant": Literal[cls.variants]}
            default: Any = dataclasses.field(default=cls.variants[0], kw_only=True)
            cls.variant = vars(cls).get("variant", default)
        super().__init_subclass__(**kwargs)

    @classmethod
    def slots(cls) -> dict[str, Slot]:
        """Return the declaration of each slot of `State`."""
        return slots_of(cls.State)

    def kinds(self, p: Array) -> dict[str, Slot]:
        """Return the declarations of the slots of `p`, for a rule whose slots lack axes that depend on the shape."""
        return self.slots()

    def init(self, p: Array) -> Any:
        """Return the slots of a new parameter: zeros, unless a rule says otherwise; slots with a default keep it."""
        return zeros_of(self.State, p)

    def update(self, g: Array, p: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        """Return the amount to add to `p`, and the new slots."""
        raise NotImplementedError(f"{type(self).__name__} needs `update(self, g, p, s, at) -> (step, state)`.")

    def scalars(self) -> Any:
        """Return the initial numbers that are kept once for all arrays: a NamedTuple, or None if there are none.

        They may be hyperparameters.
        """
        return None

    def share(self, g: Array, p: Array, s: Any, at: Clock) -> Any:
        """Return the share of one array in sums over all arrays: a NamedTuple of numbers, or None if there are none.

        `at.scalars` are those of the last step. The sums are over all arrays with a gradient, on all devices.
        """
        return None

    def advance(self, scalars: Any, at: Clock) -> Any:
        """Return the next scalars, once per step, from `at.sums`; `update` reads them from `at.scalars`."""
        return scalars

    def decoupled(self, weight_decay: Any) -> Any:
        """Return the decay applied before the rule, as `p (1 - lr decay)`; None if `update` applies it."""
        return weight_decay

    def averaged(self, p: Array, s: Any) -> Array:
        """Return the parameter to evaluate, for a rule where it is not `p`."""
        return p

    def accepts(self, path: str, p: Array) -> bool:
        """Whether this rule updates the parameter; `fallback` updates the others."""
        return True

    def placed(self, path: str, p: Array) -> "Rule":
        """Return the rule for one parameter that it accepts, where it depends on the path or the shape."""
        return self

    def about(self, p: Any) -> str:
        """Say how the rule sees an array, for a plan: "4 of 64 x 64"; "" if as it is."""
        return ""

    @property
    def fallback(self) -> "Rule":
        raise NotImplementedError(f"{type(self).__name__} does not accept all parameters: define its `fallback` rule.")
