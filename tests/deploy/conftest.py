"""One deployment for all tests of this folder."""

from collections.abc import Iterator

import pytest
from loopback import Loopback


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    found = Loopback(tmp_path_factory.mktemp("deployment"))
    try:
        yield found
    finally:
        found.close()
