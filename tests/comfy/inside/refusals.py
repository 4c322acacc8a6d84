"""Runs in ComfyUI's Python: bases that the host does not take.

usage: refusals.py   (prints one line of JSON: case -> message)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import torch  # noqa: E402
from comfy import model_sampling  # noqa: E402

from collectionlora.training.hosts.comfy import ComfyHost, UnsupportedModelError  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import pocket_clip, pocket_vae  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from models import random_model  # noqa: E402


class Epsilon(model_sampling.ModelSamplingDiscrete, model_sampling.EPS):  # type: ignore[misc]
    """As of a Stable Diffusion model."""


def message(change: str) -> str:
    """What is said of a small Qwen-Image after one change."""
    with torch.inference_mode():
        patcher, clip, vae = random_model("qwen"), pocket_clip(), pocket_vae()
    kind = type(patcher)
    try:
        if change == "epsilon":
            patcher.model.model_sampling = Epsilon()
        if change == "pooled":
            patcher.model.diffusion_model.vector_in = torch.nn.Linear(2, 2)
        with patch.object(kind, "is_dynamic", lambda self: change == "dynamic"):
            host = ComfyHost(patcher, clip, vae)
        with host.lend():
            return "not refused"
    except UnsupportedModelError as error:
        return str(error)


if __name__ == "__main__":
    cases = ("dynamic", "epsilon", "pooled")
    print(json.dumps({case: message(case) for case in cases}))
