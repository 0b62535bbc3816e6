"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# A machine that is shared, as CI's is, stalls now and then: no limit on a single example's time.
settings.register_profile("gapinit", deadline=None, print_blob=True)
settings.load_profile("gapinit")


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return an empty results folder, at a path that an unquoted shell command would break on."""
    folder = tmp_path / "results of a run"
    folder.mkdir()
    return folder
