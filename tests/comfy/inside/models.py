"""Models of ComfyUI with random weights, built as a loader node does: under inference mode, on the CPU."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch

QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "axes_dims_rope": (8, 12, 12),
}
FLUX2 = {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 3.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "guidance_embed": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "qwen": (comfy.supported_models.QwenImage, QWEN),
    "qwen 2511": (
        comfy.supported_models.QwenImage,
        {**QWEN, "default_ref_method": "index_timestep_zero"},
    ),
    "flux2": (comfy.supported_models.Flux2, FLUX2),
}
DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "fp8": (torch.float8_e4m3fn, torch.bfloat16),
}
"""Name -> (storage, arithmetic if it is another)."""


def random_model(
    kind: str, dtype: str = "float32", inference: bool = True
) -> comfy.model_patcher.ModelPatcher:
    """A small model; with `inference` False its weights are ordinary tensors, which autograd may save."""
    build, settings = KINDS[kind]
    config = build(dict(settings))
    config.set_inference_dtype(*DTYPES[dtype])
    with torch.inference_mode(inference):
        model = config.get_model({}, "").eval()
        generator = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator) * 0.05
            if "norm" in name or name.endswith("scale"):
                values += 1
            parameter.data = values.to(parameter.dtype)
        model.requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
