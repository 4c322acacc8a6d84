"""A small base and small LoRAs, exact in every dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from collectionlora.collection.catalogue import Catalogue, Effect, fingerprint
from collectionlora.collection.lora_weights import LoraWeights

WIDTH, BLOCKS = 8, 3


@pytest.fixture(scope="session")
def shapes() -> dict[str, tuple[int, int]]:
    """The Linears of a Qwen-Image transformer of width 8 with 3 blocks."""
    block = {
        "attn.to_q": (WIDTH, WIDTH),
        "attn.to_k": (WIDTH, WIDTH),
        "attn.to_v": (WIDTH, WIDTH),
        "attn.to_out.0": (WIDTH, WIDTH),
        "attn.add_q_proj": (WIDTH, WIDTH),
        "attn.add_k_proj": (WIDTH, WIDTH),
        "attn.add_v_proj": (WIDTH, WIDTH),
        "attn.to_add_out": (WIDTH, WIDTH),
        "img_mod.1": (6 * WIDTH, WIDTH),
        "txt_mod.1": (6 * WIDTH, WIDTH),
        "img_mlp.net.0.proj": (4 * WIDTH, WIDTH),
        "img_mlp.net.2": (WIDTH, 4 * WIDTH),
        "txt_mlp.net.0.proj": (4 * WIDTH, WIDTH),
        "txt_mlp.net.2": (WIDTH, 4 * WIDTH),
    }
    top = {
        "img_in": (WIDTH, 16),
        "txt_in": (WIDTH, 6),
        "proj_out": (16, WIDTH),
        "norm_out.linear": (2 * WIDTH, WIDTH),
        "time_text_embed.timestep_embedder.linear_1": (WIDTH, 256),
        "time_text_embed.timestep_embedder.linear_2": (WIDTH, WIDTH),
    }
    return {
        f"transformer_blocks.{n}.{name}": shape for n in range(BLOCKS) for name, shape in block.items()
    } | top


@pytest.fixture(scope="session")
def make_weights(shapes: dict[str, tuple[int, int]]) -> Callable[..., LoraWeights]:
    """Random LoRA on every Linear, or on the given modules."""

    def make(
        modules: list[str] | None = None,
        rank: int = 4,
        alpha: float | None = None,
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> LoraWeights:
        generator = torch.Generator().manual_seed(seed)
        weights = LoraWeights()
        for module in modules or list(shapes):
            out, inn = shapes[module]
            weights.down[module] = torch.randn(rank, inn, generator=generator).to(dtype)
            weights.up[module] = torch.randn(out, rank, generator=generator).to(dtype)
            weights.alpha[module] = float(rank if alpha is None else alpha)
        return weights

    return make


@pytest.fixture(scope="session")
def save_keys() -> Callable[..., Path]:
    """Write a LoRA under any key names: (path, weights, name of a module's part -> key, alpha too?)."""

    def save(
        path: Path,
        weights: LoraWeights,
        key: Callable[[str, str], str],
        alpha: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        tensors: dict[str, Tensor] = {}
        for module in weights.down:
            tensors[key(module, "A")] = weights.down[module]
            tensors[key(module, "B")] = weights.up[module]
            if alpha:
                tensors[key(module, "alpha")] = torch.tensor(weights.alpha[module])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=dict(metadata or {}))
        return path

    return save


@pytest.fixture(scope="session")
def assert_equal() -> Callable[[LoraWeights, LoraWeights], None]:
    """The same modules in the same order, the same bits, the same alpha."""

    def check(found: LoraWeights, expected: LoraWeights) -> None:
        assert set(found.down) == set(expected.down)
        for module in expected.down:
            for part in ("down", "up"):
                a, b = getattr(found, part)[module], getattr(expected, part)[module]
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                assert torch.equal(a.view(torch.uint8), b.contiguous().view(torch.uint8)), (module, part)
            assert found.alpha[module] == expected.alpha[module]

    return check


@pytest.fixture
def catalogue(shapes: dict[str, tuple[int, int]]) -> Catalogue:
    """Three effects, no thumbnails."""
    effects = tuple(
        Effect(name, name.title(), f"<{name}_x1>", f"<{name}_x1> make it {name}", "animal")
        for name in ("frost", "sketch", "neon")
    )
    sigmas = (1.0, 0.9545454, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3, 0.0)
    return Catalogue(
        effects, sigmas, fingerprint(shapes, "pocket"), {"steps": 5000, "lr": 1e-4, "effects": ["frost"]}
    )
