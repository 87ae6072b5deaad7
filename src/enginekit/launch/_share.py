"""One server for all processes of a user: where its state lies and how one becomes an owner.

The state file holds the address, the key and the secret of the keeper's control port; its folder
belongs to the user alone. A state file may be stale at any time: the only proof that a server lives
is that its keeper answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enginekit.errors import LaunchError
from enginekit.launch._spec import EmbeddedSpec

PROTOCOL = 1
"""Version of the state file and the control port; part of the key, so versions never meet."""
_GREETING_TIME = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A running server, as its state file describes it.

    Attributes:
        pid: of the process that holds the model.
        keeper: pid of the process that counts owners.
        job: name of the Windows job object; "" elsewhere.
    """

    nonce: str
    url: str
    api_key: str
    secret: str
    control: int
    pid: int
    keeper: int
    version: str
    model: str
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    context: int
    slots: int
    log: str
    started: float
    job: str = ""

    @classmethod
    def read(cls, path: Path) -> State | None:
        """The state in a file, or None if there is none or it is of another making."""
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            known = {name: row[name] for name in cls.__slots__ if name in row}
            known["flags"] = tuple(known["flags"])
            known["notes"] = tuple(known["notes"])
            return cls(**known)
        except (OSError, ValueError, TypeError, KeyError):
            return None


def folder() -> Path:
    """The user's own folder for state, locks and logs; made if missing, 0700.

    `ENGINEKIT_RUNTIME_DIR`, or the platform's runtime folder (`XDG_RUNTIME_DIR`), which does not
    outlive the machine's uptime and is not shared between machines as a home may be.

    Raises:
        LaunchError: it belongs to somebody else, or cannot be made.
    """
    named = os.environ.get("ENGINEKIT_RUNTIME_DIR")
    if named:
        path = Path(named).expanduser()
    else:
        import warnings

        import platformdirs

        with warnings.catch_warnings():
            # Containers have no XDG_RUNTIME_DIR; the fallback is fine and checked below.
            warnings.simplefilter("ignore")
            path = platformdirs.user_runtime_path("enginekit", appauthor=False)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sys.platform != "win32":
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise LaunchError(
                    f"{path} belongs to another user, so server keys cannot be kept there",
                    hint="set ENGINEKIT_RUNTIME_DIR to a folder of your own",
                    cause="runtime folder",
                )
            if stat.S_IMODE(found.st_mode) != 0o700:
                os.chmod(path, 0o700)
    except OSError as error:
        raise LaunchError(
            f"cannot use {path} for server state: {error.strerror}",
            hint="set ENGINEKIT_RUNTIME_DIR to a folder of your own",
            cause="runtime folder",
        ) from error
    return path


def key(spec: EmbeddedSpec, version: str) -> str:
    """Equal for requests that may share a server: same file, same wishes, same xllamacpp."""
    found = spec.model_path.stat()
    words = {
        **asdict(spec),
        "model_path": str(spec.model_path),
        "chat_template": spec.template_text,
        "size": found.st_size,
        "mtime": found.st_mtime_ns,
        "version": version,
        "protocol": PROTOCOL,
    }
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:20]


def connect(state: State, purpose: str = "hold") -> tuple[socket.socket, int] | None:
    """Become an owner of a server: the open connection and how many owners there are.

    None when nobody answers or it is not our keeper: the server is gone. With `purpose="look"` the
    keeper answers and does not count us.
    """
    try:
        connection = socket.create_connection(("127.0.0.1", state.control), _GREETING_TIME)
    except OSError:
        return None
    try:
        connection.sendall(f"{state.secret} {purpose}\n".encode())
        line = b""
        while not line.endswith(b"\n"):
            data = connection.recv(256)
            if not data:
                raise ConnectionError
            line += data
        owners = int(json.loads(line)["owners"])
        connection.setblocking(False)
    except (OSError, ValueError, LookupError, TypeError):
        connection.close()
        return None
    return connection, owners
