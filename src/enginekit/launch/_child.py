"""The keeper of one embedded server: counts its owners, ends it when the last one is gone.

Run by path; imports nothing of enginekit. Owners are connections to a loopback port, opened with a
secret; the kernel closes them however an owner dies. Until the first one connects, the pipe on
standard input stands for the process that started us. No owner for `linger` seconds: the server is
killed, also in the middle of loading. The server's death closes every connection, which is how
owners learn of it.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

_LOG_LIMIT = 4 << 20
_LOG_KEPT = 1 << 20
_GREETING_TIME = 2.0
_TICK = 5.0


class Keeper:
    """The loop. `order` is the line of JSON that the starter wrote."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        # Threads that wait on pipes wake the loop through this pair.
        self.bell, self.rope = socket.socketpair()
        self.bell.setblocking(False)
        self.selector.register(self.bell, selectors.EVENT_READ)
        self.starter = True
        self.owners: set[socket.socket] = set()
        self.strangers: dict[socket.socket, tuple[float, bytes]] = {}
        self.report: dict[str, Any] | None = None
        self.ended: int | None = None
        self.server: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Until the server ends or nobody owns it. The exit code is the server's."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        self._start_server()
        alone_since: float | None = None
        try:
            while self.ended is None:
                now = time.monotonic()
                if self.starter or self.owners:
                    alone_since = None
                elif alone_since is None:
                    alone_since = now
                elif now - alone_since >= self.order["linger"]:
                    return 0
                wait = _TICK if alone_since is None else self.order["linger"] / 4
                for key, _ in self.selector.select(0.2 if self.strangers else wait):
                    self._event(key.fileobj)
                self._send_away()
                self._trim_log()
            return self.ended or 1
        finally:
            self._end()

    # ------------------------------------------------------------------------------ the server

    def _start_server(self) -> None:
        self.server = subprocess.Popen(
            self.order["command"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.server.stdin is not None
        with contextlib.suppress(OSError):
            self.server.stdin.write(json.dumps(self.order["server"]).encode() + b"\n")
            self.server.stdin.flush()
        threading.Thread(target=self._watch_server, daemon=True).start()
        threading.Thread(target=self._watch_starter, daemon=True).start()

    def _watch_server(self) -> None:
        server = self.server
        assert server is not None
        assert server.stdout is not None
        line = server.stdout.readline()
        if line:
            self._ring({"report": json.loads(line)})
            server.stdout.read()
        self._ring({"ended": server.wait()})

    def _watch_starter(self) -> None:
        while os.read(0, 1024):
            pass
        self._ring({"starter": False})

    def _ring(self, news: dict[str, Any]) -> None:
        for name, value in news.items():
            setattr(self, name, value)
        with contextlib.suppress(OSError):
            self.rope.send(b".")

    # ------------------------------------------------------------------------------ the owners

    def _event(self, source: Any) -> None:
        if source is self.bell:
            self.bell.recv(64)
            if self.report is not None and self.ended is None:
                self._announce(self.report)
                self.report = None
        elif source is self.listener:
            with contextlib.suppress(OSError):
                connection, _ = self.listener.accept()
                connection.setblocking(False)
                self.strangers[connection] = (time.monotonic() + _GREETING_TIME, b"")
                self.selector.register(connection, selectors.EVENT_READ)
        else:
            self._heard(source)

    def _heard(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
        elif connection in self.strangers:
            until, before = self.strangers[connection]
            before += data
            if len(before) > 1024:
                self._drop(connection)
            elif b"\n" in before:
                del self.strangers[connection]
                self._greet(connection, before)
            else:
                self.strangers[connection] = (until, before)

    def _greet(self, connection: socket.socket, line: bytes) -> None:
        word, _, purpose = line.strip().partition(b" ")
        if not hmac.compare_digest(word, self.order["secret"].encode()):
            self._drop(connection)
            return
        if purpose == b"hold":
            self.owners.add(connection)
        with contextlib.suppress(OSError):
            connection.send(json.dumps({"owners": len(self.owners)}).encode() + b"\n")
        if purpose != b"hold":
            self._drop(connection)

    def _send_away(self) -> None:
        now = time.monotonic()
        for connection, (until, _) in list(self.strangers.items()):
            if now > until:
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self.owners.discard(connection)
        self.strangers.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(connection)
        connection.close()

    # ------------------------------------------------------------------------------ files, the end

    def _announce(self, report: dict[str, Any]) -> None:
        """Write the state file: from now on others may share the server."""
        assert self.server is not None
        state = {
            **self.order["state"],
            **report,
            "pid": self.server.pid,
            "keeper": os.getpid(),
            "control": self.listener.getsockname()[1],
            "secret": self.order["secret"],
        }
        part = f"{self.order['state_path']}.{os.getpid()}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(state, file)
        os.replace(part, self.order["state_path"])

    def _trim_log(self) -> None:
        """Keep the end of a log that has grown too large; its writers append."""
        try:
            with open(self.order["log"], "r+b") as file:
                size = file.seek(0, 2)
                if size <= _LOG_LIMIT:
                    return
                file.seek(size - _LOG_KEPT)
                tail = file.read()
                file.truncate(0)
                file.seek(0)
                file.write(tail)
        except OSError:
            pass

    def _end(self) -> None:
        # The state file goes first: whoever still finds it must find the port answering, or learn
        # from the closed connection that this server is over.
        self._withdraw()
        server = self.server
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
        if self.ended is not None:
            sys.stderr.write(f"enginekit: the server process ended with code {self.ended}\n")
            sys.stderr.flush()
            for connection in self.owners:
                with contextlib.suppress(OSError):
                    connection.send(json.dumps({"ended": self.ended}).encode() + b"\n")
        self.listener.close()

    def _withdraw(self) -> None:
        path = self.order["state_path"]
        try:
            with open(path, encoding="utf-8") as file:
                mine = json.load(file).get("nonce") == self.order["state"]["nonce"]
            if mine:
                os.unlink(path)
        except (OSError, ValueError):
            pass


def main() -> None:
    """Read the order, keep the server."""
    # Unbuffered: a second line must not be swallowed, the pipe's end is a message too.
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(0)
        line += data
    code = Keeper(json.loads(line)).run()
    sys.stderr.flush()
    os._exit(code & 0xFF)


if __name__ == "__main__":
    main()
