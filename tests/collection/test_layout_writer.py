"""What is not a LoRA is not written, and what was there stays."""

from __future__ import annotations

import math

import pytest
import torch

from collectionlora.collection.errors import LoraFormatError
from collectionlora.collection.layouts import write_lora
from collectionlora.collection.lora_weights import LoraWeights

Q = "transformer_blocks.0.attn.to_q"


def weights() -> LoraWeights:
    return LoraWeights({Q: torch.ones(4, 8)}, {Q: torch.ones(8, 4)}, {Q: 4.0})


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("down", {}),
        ("up", {}),
        ("alpha", {}),
        ("alpha", {Q: math.nan}),
        ("up", {Q: torch.full((8, 4), math.inf)}),
        ("up", {Q: torch.ones(8, 3)}),
        ("down", {Q: torch.ones(4)}),
        ("up", {Q: torch.ones(8, 4), "img_in": torch.ones(8, 4)}),
    ],
)
def test_inconsistent_weights_are_not_written(part, content, tmp_path):
    broken = weights()
    setattr(broken, part, content)
    (tmp_path / "l.safetensors").write_text("old")
    with pytest.raises(LoraFormatError):
        write_lora(broken, tmp_path / "l.safetensors", "comfy")
    assert (tmp_path / "l.safetensors").read_text() == "old"


def test_an_unknown_layout_lists_the_known(tmp_path):
    with pytest.raises(LoraFormatError, match="comfy, peft, kohya"):
        write_lora(weights(), tmp_path / "x", "onnx")


def test_peft_needs_a_folder(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(LoraFormatError, match="the PEFT layout is a folder"):
        write_lora(weights(), tmp_path / "x", "peft")


def test_kohya_names_that_collide_are_not_written(tmp_path):
    colliding = LoraWeights(*({"a.b": x, "a_b": x} for x in (torch.ones(1, 1), torch.ones(1, 1), 1.0)))
    with pytest.raises(LoraFormatError, match="shares the kohya name"):
        write_lora(colliding, tmp_path / "x", "kohya")
