from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.drivers.toy import Driver, drivers


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Each driver in turn."""
    yield from drivers(request.param)
