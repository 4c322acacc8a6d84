"""Samplers put the right adapter under the right sample."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from collectionlora.collection.layouts import read_lora
from collectionlora.training.bank import TeacherBank
from collectionlora.training.flow import few_step_sigmas
from collectionlora.training.lora import LoraAdapter, linear_shapes
from collectionlora.training.randomness import generator
from collectionlora.training.roles import Roles
from collectionlora.training.sampling import apply_collection, sample_collection, sample_teachers


@pytest.fixture
def files(tiny: ModuleType, tmp_path: Path) -> dict[str, Path]:
    made: dict[str, Path] = tiny.write_teachers(tmp_path)
    return made


def teach(host: Any, files: dict[str, Path], names: list[str | None], **options: Any) -> torch.Tensor:
    """Images of some teachers; a sample's noise is named by its teacher."""
    bank = TeacherBank(files, linear_shapes(host.transformer))
    texts = torch.stack(host.encode_text([str(name) for name in names], None))
    sources = torch.stack([torch.ones(2, 2, 3)] * len(names))
    draws = [generator(0, str(name)) for name in names]
    empty = torch.stack(host.encode_text([""] * len(names), None))
    with Roles(host.transformer, {}) as roles:
        return sample_teachers(host, roles, bank, names, texts, empty, sources, draws, **options)


@pytest.mark.parametrize("fresh_noise", [False, True])
def test_a_batch_of_teachers_equals_each_alone(host: Any, files: dict[str, Path], fresh_noise: bool) -> None:
    names: list[str | None] = ["neon", None, "frost", "neon"]
    together = teach(host, files, names, steps=3, fresh_noise=fresh_noise)
    for name, image in zip(names, together):
        alone = teach(host, files, [name], steps=3, fresh_noise=fresh_noise)
        assert torch.allclose(image, alone[0], atol=1e-5)
    assert not torch.allclose(together[1], together[2], atol=1e-3)


def test_guidance_costs_a_second_evaluation_and_none_costs_none(host: Any, files: dict[str, Path]) -> None:
    plain = teach(host, files, ["neon"], steps=5, guidance=0.0)
    assert host.evaluations == 5
    guided = teach(host, files, ["neon"], steps=5, guidance=4.0)
    assert host.evaluations == 15
    assert not torch.allclose(plain, guided, atol=1e-3)


def test_a_collection_is_applied_as_its_adapter_samples(host: Any, files: dict[str, Path]) -> None:
    shapes = linear_shapes(host.transformer)
    weights = read_lora(files["neon"], shapes)
    adapter = LoraAdapter(shapes, 2, 2)  # the file's rank
    adapter.load(weights)
    images = torch.rand(2, 3, 4, 6, generator=generator(0, "images"))
    sigmas = few_step_sigmas(4)

    def draws() -> list[torch.Generator]:
        return [generator(0, i) for i in range(2)]

    with Roles(host.transformer, {"it": adapter}) as roles:
        texts = torch.stack(host.encode_text(["a", "b"], None))
        latents = sample_collection(host, roles, "it", texts, host.encode_image(images), draws(), sigmas)
    host.evaluations = 0
    applied = apply_collection(host, weights, ["a", "b"], images, draws(), sigmas)
    assert host.evaluations == 2 * 4
    assert torch.allclose(applied, host.decode(latents), atol=1e-5)
    assert not any(module._forward_hooks for module in host.transformer.modules())


def test_a_collection_stored_in_half_precision_is_applied_in_full(host: Any, files: dict[str, Path]) -> None:
    weights = read_lora(files["neon"], linear_shapes(host.transformer))
    for part in (weights.down, weights.up):
        part.update({path: tensor.bfloat16() for path, tensor in part.items()})
    image = torch.rand(1, 3, 4, 6, generator=generator(0, "image"))
    made = apply_collection(host, weights, ["a"], image, [generator(0)], few_step_sigmas(2))
    assert made.dtype == torch.float32
    assert made.isfinite().all()
