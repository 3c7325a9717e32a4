"""Base classes of rules and modifiers that take the loss function: a second gradient, a search along the steps."""

from typing import Any, ClassVar

from jax import Array

from jaxopt_keras.language.clock import Clock, Line
from jaxopt_keras.language.modifier import Modifier, title


class Looking:
    """A second gradient, before the update. Put it before `Rule` or `Modifier` among the bases.

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> class Extragradient(Looking, Modifier):
    ...     def look(self, g, p, s, at):
    ...         return p - at.lr * g
    ...     def seen(self, g, p, s, at):
    ...         return at.second
    >>> kernel, p = jk.Kernel(Extragradient(jk.rules.SGD(0.25))), jnp.ones(2)
    >>> p, state, loss = kernel.minimize(lambda p: jnp.sum(p**2), p, kernel.init(p))
    >>> p.tolist()
    [0.75, 0.75]
    """

    looking: ClassVar[Any] = True  # a property, where a switch decides
    takes: ClassVar[Any] = property(lambda self: (*(["function"] if self.looking else []), *_inner_takes(self)))

    def __post_init__(self) -> None:
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue]  # of a rule
        if self.looking and "function" in _inner_takes(self):
            raise ValueError(
                f"`inner` of {type(self).__name__} must be a rule that takes no second gradient: a step has one. "
                f"Received: {title(self.inner)}"  # pyright: ignore[reportAttributeAccessIssue]  # of a modifier
            )

    def reach(self, g: Array, p: Array, s: Any, at: Clock) -> Any:
        """Return the share of one array in the sums that `look` reads from `at.sums`, as `share` does for `advance`."""
        return None

    def look(self, g: Array, p: Array, s: Any, at: Clock) -> Array:
        """Return where the second gradient is taken: the loss function's, at this point of all arrays."""
        return p

    def looks(self, at: Clock) -> Any:
        """Whether this update needs the second gradient. Without it `at.second` is 0."""
        return True

    def seen(self, g: Array, p: Array, s: Any, at: Clock) -> Array:
        """Return the gradient of the update, from the one at `p` and the second one, `at.second`."""
        return g


class Searching:
    """A search along the steps of all arrays, after the update. Put it before `Rule` among the bases."""

    searching: ClassVar[Any] = True
    takes: ClassVar[Any] = property(lambda self: ("loss", "function") if self.searching else ())

    def search(self, line: Line, scalars: Any, at: Clock) -> tuple[Any, Any]:
        """Return the scalars and the gradients of all arrays at the point that was found on a line."""
        raise NotImplementedError(f"{type(self).__name__} needs `search(self, line, scalars, at) -> (scalars, grads)`.")

    def searched(self, step: Array, s: Any, at: Clock) -> tuple[Array, Any]:
        """Return the step and the slots of an array after `search`: `at.scalars` are new, `at.second` its gradient."""
        raise NotImplementedError(f"{type(self).__name__} needs `searched(self, step, s, at) -> (step, state)`.")


def _inner_takes(rule: Any) -> tuple[str, ...]:
    return rule.inner.takes if isinstance(rule, Modifier) else ()


def looking(rule: Any, depth: int = 0) -> tuple[Any, int]:
    """Return the rule or the modifier that takes the second gradient, and the number of modifiers around it.

    None: there is none, for this parameter.
    """
    if isinstance(rule, Looking) and rule.looking:
        return rule, depth
    return looking(rule.inner, depth + 1) if isinstance(rule, Modifier) else (None, 0)


def merges(rule: Any) -> bool:
    """Whether a rule makes one gradient of both, so that its update needs the second one no more."""
    found, _ = looking(rule)
    return found is not None and type(found).seen is not Looking.seen


def is_searching(rule: Any) -> bool:
    """Whether a rule searches along its steps."""
    return isinstance(rule, Searching) and bool(rule.searching)
