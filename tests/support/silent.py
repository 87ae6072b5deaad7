"""An address that neither accepts nor refuses: what a black-holed server looks like to a client."""

from __future__ import annotations

import socket
from typing import Self


class Silent:
    """A listener whose backlog is full, so that a connection to it never opens. Call `end` once."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._crowd = [socket.socket() for _ in range(4)]
        for one in self._crowd:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))

    def end(self) -> None:
        """From now on connections are refused, until something listens there."""
        for one in (*self._crowd, self._listener):
            one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()
