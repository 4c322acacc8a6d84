"""Runs in ComfyUI's Python: core's own LoRA path on a pocket-size Qwen-Image base with random weights.

usage: lora_by_core.py LORA STRENGTH   (prints one line of JSON)
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import comfy.lora  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from models import random_model  # noqa: E402

DOWN = ".lora_down.weight"
"""As where alpha is not the rank."""


class Warnings(logging.Handler):
    """Keeps the text of everything logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's weights as they are now."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def main(path: str, strength: float) -> None:
    """Load, patch, compare with W + strength * alpha / r * B A, unpatch, compare with W."""
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)

    patcher = random_model("qwen")
    before = copied(patcher.model)
    lora, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    paths = sorted(key.removesuffix(DOWN) for key in lora if key.endswith(DOWN))

    patched, _ = comfy.sd.load_lora_for_models(patcher, None, dict(lora), strength, 0.0)
    patched.patch_model(device_to=torch.device("cpu"))
    during = copied(patched.model)
    patched.unpatch_model(device_to=torch.device("cpu"))
    after = copied(patcher.model)

    expected = dict(before)
    for module in paths:
        down, up = lora[module + DOWN], lora[f"{module}.lora_up.weight"]
        alpha = lora[f"{module}.alpha"].item() if f"{module}.alpha" in lora else down.shape[0]
        expected[key_map[module]] = before[key_map[module]] + strength * alpha / down.shape[0] * (up @ down)
    print(
        json.dumps(
            {
                "warnings": warnings.seen,
                "metadata": sorted(metadata or {}),
                "modules": len(paths),
                "patched": len(patched.patches),
                "changed": sum(not torch.equal(before[name], during[name]) for name in before),
                "largest_change": max((during[n] - before[n]).abs().max().item() for n in before),
                "largest_error": max((during[n] - expected[n]).abs().max().item() for n in before),
                "restored": all(torch.equal(before[name], after[name]) for name in before),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
