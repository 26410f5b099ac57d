"""What the tests of lost and damaged files share."""

from __future__ import annotations

import pytest

from curate.store.workspace import Workspace
from tests.support import rich as rich_workspace


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with an object of most kinds."""
    return rich_workspace.made(tmp_path_factory.mktemp("rich"))
