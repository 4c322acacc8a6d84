"""The pocket world: a trained Qwen-Image-Edit at pocket size, its data, effects and shipped weights."""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
"""Where its lists and run files are."""

PICTURES = FOLDER / "pictures"
"""Folder of `train`, `tune` and `test`."""

WEIGHTS = FOLDER / "weights"
"""Folder of the shipped weights."""

FEW_STEP = WEIGHTS / "few_step.safetensors"
"""A LoRA of few-step sampling alone."""

NAME = "pocket-qwen-image-edit"
"""What a collection file calls the pocket base."""

TRANSFORMER: dict[str, Any] = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 5,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}
"""Size of the transformer, as diffusers and ComfyUI both name it."""
