"""Signals as a process in a terminal has them."""

from __future__ import annotations

import signal


def as_in_a_terminal() -> None:
    """Undo what a background job inherits: its shell, or nohup, ignores SIGINT and SIGHUP."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
