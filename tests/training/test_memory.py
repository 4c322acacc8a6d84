"""Memory is asked of the module that torch has for a device."""

from __future__ import annotations

import pytest
import torch

from collectionlora.training.memory import allocated_memory, peak_memory


def test_devices_are_asked_that_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "memory_allocated", lambda device: 7)
        monkeypatch.setattr(getattr(torch, kind), "max_memory_allocated", lambda device: 9)
        assert (allocated_memory(torch.device(kind)), peak_memory(torch.device(kind))) == (7, 9)
    for kind in ("cpu", "mps"):
        assert allocated_memory(torch.device(kind)) == 0
        assert peak_memory(torch.device(kind)) > 2**20  # the process'
