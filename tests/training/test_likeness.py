"""The stand-in for a judge tells effects apart by what they change, wherever they change it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from collectionlora.pocket.effects import EFFECTS
from collectionlora.pocket.images import load_folder
from collectionlora.training.likeness import likeness


@pytest.fixture(scope="module")
def sources(repository: Path) -> list[np.ndarray]:
    folder = repository / "pocket" / "pictures" / "test"
    return [image for _, image in sorted(load_folder(folder).items())][:4]


def drawn(source: np.ndarray, names: list[str], seed: int) -> Tensor:
    """The true results (N,3,H,W), anew for each seed."""
    results = [EFFECTS[name].apply(source, np.random.default_rng([seed, *name.encode()])) for name in names]
    return torch.from_numpy(np.stack(results)).float().movedim(-1, 1)


def as_tensor(source: np.ndarray) -> Tensor:
    return torch.from_numpy(source).float().movedim(-1, 0)


def test_another_draw_of_an_effect_is_nearest_to_its_own_teacher(sources: list[np.ndarray]) -> None:
    names, found = list(EFFECTS), []
    for source in sources:
        matrix = likeness(as_tensor(source), drawn(source, names, 1), drawn(source, names, 2))
        found.append((matrix.argmax(1) == torch.arange(len(names))).float().mean())
    assert torch.stack(found).mean() >= 0.75  # of fifty; chance is 0.02


def test_swapped_effects_show_off_the_diagonal(sources: list[np.ndarray]) -> None:
    names = ["thermal", "sketch", "neon"]
    teachers = drawn(sources[0], names, 1)
    matrix = likeness(as_tensor(sources[0]), teachers, drawn(sources[0], names, 2)[[1, 0, 2]])
    assert matrix.argmax(1).tolist() == [1, 0, 2]


def test_the_scale_is_the_untouched_source(sources: list[np.ndarray]) -> None:
    source = as_tensor(sources[0])
    teachers = drawn(sources[0], ["thermal", "sketch"], 1)
    untouched = likeness(source, teachers, source.expand(2, -1, -1, -1))
    assert untouched.abs().max() < 1e-5
    assert torch.allclose(likeness(source, teachers, teachers).diagonal(), torch.ones(2), atol=1e-5)


@pytest.mark.parametrize("size", [(4, 6), (128, 128), (300, 200)])
def test_pictures_of_any_size_and_broken_ones_are_compared(size: tuple[int, int]) -> None:
    draws = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(0))
    students = draws[3:].clone()
    students[0] = torch.nan
    matrix = likeness(draws[0], draws[1:3], students)
    assert matrix.shape == (2, 2)
    assert matrix.isfinite().all()
    assert matrix.abs().max() <= 1
