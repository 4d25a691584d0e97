"""One deployment for all tests of a module, which ends with it."""

from collections.abc import Iterator

import pytest
from loopback import Loopback


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    found = Loopback(tmp_path_factory.mktemp("deployment"))
    try:
        yield found
    finally:
        found.close()
