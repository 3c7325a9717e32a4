"""Sections of code that signals do not interrupt: between a call that donates arrays and the storing of results.

Python runs the handler of a signal between any two instructions, so also between a call and the assignment of
its result. A handler that raises there, such as that of Ctrl-C, would lose the new arrays when the old are gone.
"""

import _signal  # pyright: ignore[reportMissingImports]  # `signal` converts to enums, which costs ten times as much
import signal
import threading
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGBREAK", "SIGALRM", "SIGVTALRM", "SIGXCPU", "SIGUSR1", "SIGUSR2")
_NUMBERS = tuple(int(getattr(signal, name)) for name in _NAMES if hasattr(signal, name))


class uninterrupted:  # used as a function
    """Context manager in which no signal handler runs. Handlers of signals that arrive inside run at its end.

    `Kernel.step` donates its arguments: the old arrays are gone when it returns. If Ctrl-C raises `KeyboardInterrupt`
    before the assignment of the results, neither old nor new arrays are left. An assignment inside this section is
    never skipped:

    >>> import jax.numpy as jnp, jaxopt_keras as jk
    >>> kernel, params = jk.sgd(0.5), jnp.ones(2)
    >>> state = kernel.init(params)
    >>> for _ in range(2):
    ...     grads = 2 * params
    ...     with jk.uninterrupted():
    ...         params, state = kernel.step(params, state, grads)
    >>> params.tolist(), int(state.count)
    ([0.0, 0.0], 2)

    Steps of the stateful face are such sections already; optimizers of Keras's trainer are not, whose loop is Keras's.
    It costs about 3 microseconds. Deferred are SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGVTALRM, SIGXCPU, SIGUSR1
    and SIGUSR2, if they have handlers in Python; also during a compilation in the section. Outside the main thread, in
    which Python runs all handlers, it does nothing.
    """

    _handlers: dict[int, Any]

    def __enter__(self) -> None:
        self._handlers, self._pending, self._defers = {}, dict[int, Any](), False
        if threading.get_ident() != threading.main_thread().ident:
            return
        try:
            for number in _NUMBERS:
                handler = _signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    _signal.signal(number, self._handle)
        except BaseException:  # of another handler, which ran here
            self.__exit__()
            raise
        self._defers = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._defers:
            self._pending[number] = frame
        else:  # the section begins or ends
            self._handlers[number](number, frame)

    def __exit__(self, *error: object) -> None:
        self._defers = False
        try:
            self._restore()
        except BaseException:  # of a handler that ran meanwhile
            self._restore()  # again: the others
            raise
        finally:
            self._run_pending()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if _signal.getsignal(number) == self._handle:  # else restored, or the section has set another handler
                _signal.signal(number, handler)

    def _run_pending(self) -> None:
        if self._pending:
            number, frame = self._pending.popitem()
            try:
                self._handlers[number](number, frame)
            finally:  # a handler that raises does not drop the others
                self._run_pending()
