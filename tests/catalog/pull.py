"""A process that resolves a model name, for tests with several of them and for ending one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from enginekit.catalog import _index, sources
from enginekit.errors import EngineKitError
from tests.support.signals import as_in_a_terminal


class Told:
    """Says that bytes have begun to come."""

    said = False

    def start(self, total: int | None, label: str) -> None:
        pass

    def advance(self, count: int) -> None:
        if count and not self.said:
            self.said = True
            print("bytes", flush=True)

    def finish(self) -> None:
        pass


def main() -> None:
    as_in_a_terminal()
    row = json.loads(sys.argv[1])
    _index.PATIENCE = 60.0  # a loaded test machine needs more than two seconds for pip
    entry = sources.Pinned(**{**row, "aliases": ()})
    sources.pinned = lambda: {entry.name: entry}  # type: ignore[assignment,return-value]
    try:
        found = sources.resolve(entry.name, progress=Told())
    except EngineKitError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        return
    print(json.dumps({"path": str(found.path), "source": found.source}), flush=True)


main()
