"""PEFT's merges of teachers, through our files and back."""

import pytest
import torch

from collectionlora.collection.lora_weights import LoraWeights
from collectionlora.pocket.merges import MERGES, merge
from collectionlora.training.randomness import generator

SHAPES = {"blocks.0.attn.to_q": (12, 8), "blocks.0.attn.to_out.0": (8, 12), "blocks.1.mlp": (16, 8)}
RANK = 8


@pytest.fixture
def teachers():
    """Three teachers of ranks 1, 2 and 3; the last adapts two of the modules only."""
    draw = generator(0, "teachers")

    def lora(rank, modules):
        down = {path: torch.randn(rank, SHAPES[path][1], generator=draw) for path in modules}
        up = {path: torch.randn(SHAPES[path][0], rank, generator=draw) for path in modules}
        return LoraWeights(down, up, dict.fromkeys(modules, 2.0))

    paths = list(SHAPES)
    return [lora(1, paths), lora(2, paths), lora(3, paths[:2])]


def delta(lora, path):
    return lora.scale(path) * lora.up[path] @ lora.down[path] if path in lora.down else 0


def test_svd_of_enough_rank_is_the_weighted_sum(teachers):
    merged = merge(teachers, SHAPES, "svd", RANK)
    for path in SHAPES:
        expected = sum(delta(lora, path) for lora in teachers) / 3**0.5
        torch.testing.assert_close(delta(merged, path), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", MERGES)
def test_a_merge_has_the_asked_rank_and_repeats(teachers, how):
    state = torch.random.get_rng_state()
    first, second = (merge(teachers, SHAPES, how, 4) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert set(first.down) == set(SHAPES)
    for path in SHAPES:
        assert first.rank(path) == 4
        assert torch.equal(delta(first, path), delta(second, path))
        assert float(delta(first, path).abs().max()) > 0


def test_ties_keeps_the_sign_of_the_stronger_side():
    path = "blocks.1.mlp"

    def lora(value):
        return LoraWeights({path: torch.ones(1, 8)}, {path: torch.full((16, 1), value)}, {path: 1.0})

    merged = merge([lora(1.0), lora(0.6), lora(-0.5)], {path: (16, 8)}, "ties", 1)
    assert float(delta(merged, path).min()) >= -1e-5
    assert float(delta(merged, path).max()) > 0.5
