"""Signals that end a stream of reports: the lines read so far are sent first, so that the next one can be named."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Signals that end a stream. An ignored one (nohup) stays ignored.
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

#: The signal with which another thread ends a wait of the main thread; None where threads cannot be signalled.
_WAKING: signal.Signals | None = getattr(signal, "SIGUSR1", None) if hasattr(signal, "pthread_kill") else None


class Interrupted(BaseException):
    """A signal was received. Not an `Exception`, so that no handler takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def name(self) -> str:
        """Return the signal's name."""
        return signal.Signals(self.signum).name

    @property
    def exit_code(self) -> int:
        """Return the exit code of a shell for a process that a signal ended."""
        return 128 + self.signum


class Interrupts:
    """Raises `Interrupted` in `interruptible` parts only; a signal outside of them is raised in the next one.

    A second signal has its default effect. For the main thread.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._received: int | None = None
        self._may_raise = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            waking = () if _WAKING is None else (_WAKING,)
            for each in (*STOPPING, *waking):
                if signal.getsignal(each) is not signal.SIG_IGN or each is _WAKING:
                    self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `Interrupted` in this part, also for a signal received before."""
        self._may_raise = True
        try:
            if self._received is not None:
                raise Interrupted(self._received)
            yield
        finally:
            self._may_raise = False

    @property
    def wake(self) -> Callable[[], None] | None:
        """Return a function with which another thread ends the `interruptible` part, None if that is impossible."""
        if _WAKING is None or _WAKING not in self._before:
            return None
        waking = _WAKING
        return lambda: signal.pthread_kill(threading.main_thread().ident or 0, waking)

    def _note(self, signum: int, _frame: object) -> None:
        self._received = signum
        if signum != _WAKING:
            self._restore(but=_WAKING)
        if self._may_raise:
            raise Interrupted(signum)

    def _restore(self, but: int | None = None) -> None:
        for signum in [each for each in self._before if each != but]:
            signal.signal(signum, self._before.pop(signum))
