"""Models that are loaded in the background, while another engine of a list answers.

Some servers load a model for the request that wants it, and give the load up when that request
does (Ollama): somebody has to wait for it. That is a thread of its own, one for each model of a
server, which ends with the load or with its budget. It is a daemon: a program that ends meanwhile
ends, and the server drops the load.
"""

from __future__ import annotations

import os
import threading
from typing import TypeAlias

from enginekit.engine import Encoded, Engine
from enginekit.errors import EngineKitError
from enginekit.operations import within

_Key: TypeAlias = tuple[str, str]
_lock = threading.Lock()
_under_way: set[_Key] = set()
_failed: dict[_Key, EngineKitError] = {}


def load_beside(engine: Engine, encoded: Encoded, seconds: float) -> EngineKitError | None:
    """Begin to load what a request needs, unless that is under way; returns at once.

    Returns why the last try failed, if it did: whoever passes over this engine can say so. A new
    try has begun all the same.
    """
    key = (engine.target.base_url, str(encoded.call.json.get("model")))
    with _lock:
        if key in _under_way:
            return None
        _under_way.add(key)
        failed = _failed.pop(key, None)
    threading.Thread(
        target=_load, args=(key, engine, encoded, seconds), name="enginekit-load", daemon=True
    ).start()
    return failed


def _load(key: _Key, engine: Engine, encoded: Encoded, seconds: float) -> None:
    from enginekit.drivers import sync

    try:
        sync.default().run(within(engine.warm(encoded, seconds), seconds))
    except EngineKitError as error:
        with _lock:
            _failed[key] = error
    finally:
        with _lock:
            _under_way.discard(key)


def _after_fork() -> None:
    """In a child the lock may be held, and the threads are the parent's."""
    global _lock
    _lock = threading.Lock()
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
