"""Models of ComfyUI with random weights, built as a loader node does: under inference mode, on the CPU."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
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
    "fp8 scaled": (torch.bfloat16, torch.bfloat16),
    "packed": (torch.float32, None),
}
"""Name -> (storage, arithmetic if it is another). "fp8 scaled": each Linear has a scale; "packed": each
Linear unpacks its weight itself.
"""

FP8_MAX = 448.0


class Packed(comfy.ops.manual_cast):
    """Layers that behave as ComfyUI-GGUF's: packed weights, an unpacking of their own, no state dict."""

    class Linear(comfy.ops.manual_cast.Linear):
        """Whole numbers and one scale."""

        def _load_from_state_dict(self, state: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
            weight = state[f"{prefix}weight"]
            self.scale = float(weight.abs().max()) / 127
            self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), False)
            if f"{prefix}bias" in state:
                self.bias = torch.nn.Parameter(state[f"{prefix}bias"], False)

        def _save_to_state_dict(self, found: dict[str, torch.Tensor], prefix: str, keep: bool) -> None:
            for name, parameter in self.named_parameters():
                found[prefix + name] = torch.zeros_like(parameter, device="meta")

        def cast_bias_weight(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
            """The weight, unpacked, and the bias."""
            return self.weight.to(input) * self.scale, self.bias

        def forward_comfy_cast_weights(self, input: torch.Tensor) -> torch.Tensor:
            """W x + b."""
            return torch.nn.functional.linear(input, *self.cast_bias_weight(input))


def random_model(
    kind: str, dtype: str = "float32", inference: bool = True
) -> comfy.model_patcher.ModelPatcher:
    """A small model; with `inference` False its weights are ordinary tensors, which autograd may save."""
    build, settings = KINDS[kind]
    weights = random_weights(build, settings)
    config = build(dict(settings))
    if dtype == "fp8 scaled":
        weights = _scaled(weights)
        config.quant_config = comfy.utils.detect_layer_quantization(weights, "")
    if dtype == "packed":
        config.custom_operations = Packed
    config.set_inference_dtype(*DTYPES[dtype])
    with torch.inference_mode(inference):
        model = config.get_model({}, "").eval()
        # tensors of this mode: a loader reads its file in it
        model.load_model_weights({name: tensor.clone() for name, tensor in weights.items()}, "")
        model.requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def random_weights(build: type, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Values of moderate size for every tensor of a model, by name."""
    config = build(dict(settings))
    config.set_inference_dtype(torch.float32, None)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in config.get_model({}, "").diffusion_model.state_dict().items():
        weights[name] = torch.randn(tensor.shape, generator=generator) * 0.05
        if "norm" in name:
            weights[name] += 1
    return weights


def _scaled(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    made = {}
    note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for name, tensor in weights.items():
        if tensor.ndim != 2:
            made[name] = tensor
            continue
        scale = tensor.abs().max() / FP8_MAX
        layer = name.removesuffix("weight")
        made[name] = (tensor / scale).to(torch.float8_e4m3fn)
        made |= {f"{layer}weight_scale": scale, f"{layer}comfy_quant": note}
    return made


class Nobody:
    """A page that nobody looks at, for code that sends events."""

    def send_sync(self, event: str, data: Any) -> None:
        """Told to no one."""
