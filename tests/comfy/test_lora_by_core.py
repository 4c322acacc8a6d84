"""A collection file in core's own LoRA path, without any node of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_core_adds_every_module_of_a_collection_to_its_weight_and_takes_it_back(
    run_inside: Callable[..., dict[str, Any]], collection_file: Path, linears: dict[str, Any], strength: float
) -> None:
    seen = run_inside("lora_by_core.py", collection_file, strength)
    assert seen["warnings"] == []
    assert seen["modules"] == seen["patched"] == seen["changed"] == len(linears)
    assert seen["largest_change"] > 0.01
    assert seen["largest_error"] < 1e-6
    assert seen["restored"]
