"""Models that are loaded in the background, while another engine of a list answers.

Some servers load a model for the request that wants it, and give the load up when that request
does (Ollama): somebody has to wait for it. That is a thread of its own, one for each model of a
server, which ends with the load or with its budget. It is a daemon: a program that ends meanwhile
ends, and the server drops the load.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Final, TypeAlias

from enginekit.engine import Encoded, Engine
from enginekit.errors import EngineKitError, EngineLoading
from enginekit.operations import within

_Key: TypeAlias = tuple[str, str, str]
"""Address, model, and the options that it is loaded with."""
_RECENT: Final = 60.0
"""Seconds for which a load that ended well is believed, whatever the server lists: one that keeps
nothing (`OLLAMA_KEEP_ALIVE=0`), or has another window than was asked for, would never be asked."""
_lock = threading.Lock()
_under_way: set[_Key] = set()
_failed: dict[_Key, EngineKitError] = {}
_loaded: dict[_Key, float] = {}
"""When the load of a model ended, by `time.monotonic`."""


def load_beside(engine: Engine, encoded: Encoded, seconds: float) -> EngineLoading | None:
    """Begin to load what a request needs, unless that is under way; returns at once.

    Returns what to pass this engine over for, with the reason why the last try failed, if it did:
    a new one has begun all the same. None: it was loaded a moment ago, and may be asked.
    """
    options = json.dumps(encoded.call.json.get("options"), sort_keys=True, default=str)
    key = (engine.target.base_url, str(encoded.call.json.get("model")), options)
    with _lock:
        if time.monotonic() - _loaded.pop(key, -_RECENT) < _RECENT:
            return None
        failed = _failed.pop(key, None)
        begin = key not in _under_way
        _under_way.add(key)
    if begin:
        thread = threading.Thread(
            target=_load, args=(key, engine, encoded, seconds), name="enginekit-load", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no further thread
            with _lock:
                _under_way.discard(key)
            return _passed_over(engine, f"nothing loads it: {error}")
    if failed is None:
        return _passed_over(engine, "it is asked to while others answer")
    why = _passed_over(engine, f"the last try failed: {failed}; it is asked again")
    why.__cause__ = failed
    return why


def _passed_over(engine: Engine, why: str) -> EngineLoading:
    return EngineLoading(
        f"{engine.name} at {engine.target.base_url} has not loaded the model yet; {why}",
        engine=engine.name,
        url=engine.target.base_url,
    )


def _load(key: _Key, engine: Engine, encoded: Encoded, seconds: float) -> None:
    from enginekit.drivers import sync

    try:
        sync.default().run(within(engine.warm(encoded, seconds), seconds))
        with _lock:
            _loaded[key] = time.monotonic()
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
