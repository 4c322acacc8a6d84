"""The tiny distillation that tests of the trainer run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny.py` beside this file (a test run as `--import-mode=importlib` has no siblings)."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def teachers(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny teachers' files."""
    folder: Path = tmp_path_factory.mktemp("teachers")
    tiny.write_teachers(folder)
    return folder
