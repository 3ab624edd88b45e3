"""Ctrl-C where the best result so far would be lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["interrupts_held"]


@contextlib.contextmanager
def interrupts_held() -> Iterator[threading.Event]:
    """Note the first Ctrl-C instead of raising it: what is left then takes seconds, and the result would be lost.

    The event that is yielded tells slow steps to end early; a second Ctrl-C raises ``KeyboardInterrupt`` at once.
    Other threads than the main one never get the signal: there nothing changes.
    """
    held = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield held
        return

    def note(number: int, frame: FrameType | None) -> None:
        if held.is_set():
            raise KeyboardInterrupt
        held.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
