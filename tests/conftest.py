"""What every test gets: the repository's folder, and an environment in which nothing asks the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root, which is the package."""
    return Path(__file__).resolve().parents[1]
