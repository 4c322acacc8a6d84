"""What is encoded once for the whole run."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from collectionlora.collection.jsonl import GeneralSample
from collectionlora.training import encoding


@pytest.mark.parametrize("sees", [False, True])
def test_general_pictures_are_read_once_and_not_held(
    sees: bool, project: Any, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be tens of thousands."""
    host.text_sees_image = sees
    files = [project.folder / project.picture(f"{i}.png", (24, 16), seed=i) for i in range(4)]
    general = [GeneralSample(files[i % 4], f"edit {i % 3}") for i in range(12)]
    alive: list[weakref.ref[Any]] = []
    read = host.read_image

    def watched(path: Path) -> Any:
        assert sum(one() is not None for one in alive) <= 1
        image = read(path)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(host, "read_image", watched)
    encoded = encoding.encode_general(host, general, [], [])
    assert len(alive) == 4
    for one, sample in zip(general, encoded, strict=True):
        image = read(one.source_image)
        assert torch.equal(sample.source, host.encode_image(image[None])[0])
        assert torch.equal(sample.student, host.encode_text([one.instruction], image if sees else None)[0])
