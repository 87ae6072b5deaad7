"""A process that owns an embedded server, for tests that end it in every way there is.

Told by one JSON argument: `model`, `spec` (fields of EmbeddedSpec), `after` (what to do with the
lease), `limit` (bytes of address space). Says one JSON line per step.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.signals import as_in_a_terminal


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


def main() -> None:
    as_in_a_terminal()
    task = json.loads(sys.argv[1])
    if task.get("limit"):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (task["limit"], task["limit"]))
    from enginekit.errors import EngineKitError
    from enginekit.launch.embedded import EmbeddedSpec, acquire

    say(step="starting", pid=os.getpid())
    try:
        lease = acquire(EmbeddedSpec(model_path=task["model"], **task.get("spec", {})), budget=100)
    except EngineKitError as error:
        say(
            step="failed",
            kind=type(error).__name__,
            message=str(error),
            hint=error.hint,
            cause=getattr(error, "cause", ""),
            log=getattr(error, "log", ()),
        )
        return
    say(
        step="leased",
        pid=lease.pid,
        url=lease.base_url,
        key=lease.api_key,
        shared=lease.shared,
        imported="xllamacpp" in sys.modules,
        session=os.getsid(lease.pid) == os.getsid(0),
    )
    after = task.get("after", "wait")
    if after == "stream":
        stream(lease)
    elif after == "fork":
        fork(lease)
    elif after == "interrupt":
        try:
            time.sleep(100)
        except KeyboardInterrupt:
            time.sleep(1.5)
            say(step="interrupted", alive=lease.alive())
            return
    sys.stdin.read(1)


def stream(lease: object) -> None:
    """Read endless answers, one after the other; say when it began and how it broke off."""
    request = urllib.request.Request(
        lease.base_url + "/v1/chat/completions",  # type: ignore[attr-defined]
        data=json.dumps(
            {"messages": [{"role": "user", "content": "LONG"}], "stream": True}
        ).encode(),
        headers={"Authorization": f"Bearer {lease.api_key}"},  # type: ignore[attr-defined]
    )
    whole, error, told = True, "", False
    while whole:
        whole = False
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                while line := answer.readline():
                    if not told:
                        say(step="streaming")
                        told = True
                    whole = whole or line.startswith(b"data: [DONE]")
        except Exception as cause:
            error = type(cause).__name__
    say(step="broken", error=error, alive=lease.alive())  # type: ignore[attr-defined]


def fork(lease: object) -> None:
    """Fork; the child sees a lease that is not its own, drops it and ends."""
    child = os.fork()
    if child == 0:
        alive = lease.alive()  # type: ignore[attr-defined]
        lease.release()  # type: ignore[attr-defined]
        os._exit(1 if alive else 0)
    _, status = os.waitpid(child, 0)
    time.sleep(1.5)
    say(
        step="forked",
        child_saw_it_alive=os.waitstatus_to_exitcode(status) == 1,
        alive=lease.alive(),  # type: ignore[attr-defined]
    )


main()
