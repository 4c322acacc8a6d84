"""Runs in ComfyUI's Python: a whole distillation on a small model of random weights.

usage: distilled.py FOLDER KIND   (prints one line of JSON)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import server  # noqa: E402
import torch  # noqa: E402
from comfy import sd  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

from collectionlora.collection.file import load_collection  # noqa: E402
from collectionlora.collection.jsonl import EffectEntry, EffectSample, GeneralSample  # noqa: E402
from collectionlora.collection.layouts import comfy_tensors, write_lora  # noqa: E402
from collectionlora.nodes.distil import _distil, _fitting  # noqa: E402
from collectionlora.nodes.events import RunEvents  # noqa: E402
from collectionlora.pocket import WEIGHTS  # noqa: E402
from collectionlora.training.config import distillation  # noqa: E402
from collectionlora.training.hosts.comfy import ComfyHost  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import PocketLatent, pocket_clip, pocket_vae  # noqa: E402
from collectionlora.training.lora import (  # noqa: E402
    PAPER_TARGETS,
    LoraAdapter,
    block_targets,
    linear_shapes,
    target_shapes,
)
from collectionlora.training.run_config import Lists, Run, TeacherSampling  # noqa: E402

sys.path.append(str(Path(__file__).parent))
from models import KINDS, Nobody, random_weights  # noqa: E402

POCKET = {
    "qwen 2511": {},
    "flux2": {"in_channels": 16, "out_channels": 16, "context_in_dim": 64},
}
"""What makes a model take the pocket's text and latents."""

SETTINGS = {
    "cycles": 3,
    "warm_cycles": 1,
    "batch": 2,
    "micro_batch": 1,
    "rank": 2,
    "alpha": 2.0,
    "fake_ratio": 1,
}


class FlatLatent(PocketLatent):
    """The pocket's latents without the frame axis, as FLUX has them."""

    latent_dimensions = 2


def small(kind: str) -> ModelPatcher:
    """On the pocket's text and latents."""
    build, settings = KINDS[kind]
    settings = {**settings, **POCKET[kind]}
    config = build(settings)
    config.latent_format = FlatLatent() if kind == "flux2" else PocketLatent()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "").eval()
    model.load_model_weights(random_weights(build, settings), "")
    cpu = torch.device("cpu")
    return ModelPatcher(model, load_device=cpu, offload_device=cpu)


def main(folder: Path, kind: str) -> dict[str, Any]:
    """Distil two random teachers, load the result with core's means."""
    server.PromptServer.instance = Nobody()
    pictures = sorted((WEIGHTS.parent / "pictures" / "test").glob("*.webp"))[:2]
    with torch.inference_mode():
        model, clip, vae = small(kind), pocket_clip(), pocket_vae()
    net = model.model.diffusion_model
    shapes = target_shapes(net, block_targets(net) if kind == "flux2" else PAPER_TARGETS)
    effects = {}
    for number, name in enumerate(("rust", "silk")):
        adapter = LoraAdapter.create(shapes, 2, 2, number)
        for parameter in adapter.up.values():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
        write_lora(adapter.weights(), folder / f"{name}.safetensors", "comfy", {})
        effects[name] = EffectEntry(name, folder / f"{name}.safetensors", f"make it {name}", "", "", "")
    samples = [
        EffectSample(path, effect.prompt, name, None) for name, effect in effects.items() for path in pictures
    ]
    lists = Lists(effects, samples, [GeneralSample(pictures[0], "blur it")])
    run = Run(folder / "out", lists, distill=distillation(SETTINGS), targets=TeacherSampling(2, 1.0, 2))
    with torch.inference_mode():
        host = ComfyHost(model, clip, vae, 128, 16, True)
        run = Run(run.output, lists, distill=_fitting(run.distill, host), targets=run.targets)
        with host.lend():
            report = _distil(run, host, RunEvents(run.output, 3), 0, None)
        weights, catalogue = load_collection(run.collection, linear_shapes(host.transformer))
        patched, _ = sd.load_lora_for_models(model, None, comfy_tensors(weights), 1.0, 0)
    return {
        "cycles": report["training"]["cycles"],
        "terms": sorted(report["losses"]),
        "effects": [effect.name for effect in catalogue.effects],
        "modules": len(weights.down),
        "patched": len(patched.patches),
        "blocks": len(shapes),
        "moved": max(tensor.abs().max().item() for tensor in weights.up.values()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
