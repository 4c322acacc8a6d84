"""Runs in ComfyUI's Python: how often the pack's nodes ask the models.

usage: sampling.py   (prints one line of JSON: evaluations by steps, encodings of A, B and A again)
"""

from __future__ import annotations

import json
from typing import Any

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import torch  # noqa: E402
from comfy import model_management  # noqa: E402

from collectionlora.collection.file import load_collection  # noqa: E402
from collectionlora.nodes.effect import encode  # noqa: E402
from collectionlora.nodes.sampling import collection_sigmas, sample_latent  # noqa: E402
from collectionlora.nodes.sockets import ATTACHMENT  # noqa: E402
from collectionlora.pocket import WEIGHTS  # noqa: E402
from collectionlora.training.hosts.comfy_pocket import pocket_clip, pocket_model, pocket_vae  # noqa: E402

if __name__ == "__main__":
    catalogue = load_collection(WEIGHTS / "collection.safetensors")[1]
    seen: dict[int, int] = {}
    with torch.inference_mode():
        model, clip, vae = pocket_model(), pocket_clip(), pocket_vae()
        model.set_attachments(ATTACHMENT, catalogue)
        calls: list[int] = []
        model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
        positive, latent = encode(clip, vae, torch.rand(1, 128, 128, 3), catalogue.effects[0].prompt)
        for steps in (1, 4, 8):
            calls.clear()
            empty = {"samples": torch.zeros_like(latent)}
            sample_latent(model, positive, empty, 0, collection_sigmas(model, steps))
            seen[steps] = len(calls)
        counts = {"texts": 0, "pictures": 0}

        def counted(kind: str, function: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                counts[kind] += 1
                return function(*args, **kwargs)

            return call

        clip.encode_from_tokens_scheduled = counted("texts", clip.encode_from_tokens_scheduled)
        vae.encode = counted("pictures", vae.encode)
        picture = torch.rand(1, 128, 128, 3)
        first, second = (effect.prompt for effect in catalogue.effects[:2])
        made = [encode(clip, vae, picture.clone(), prompt)[0] for prompt in (first, second, first)]
        same = torch.equal(made[0][0][0], made[2][0][0])
        # ComfyUI says where and as what results of nodes lie
        model_management.intermediate_dtype = lambda: torch.float16
        empty = {"samples": torch.zeros_like(latent), "downscale_ratio_spacial": 8}
        result = sample_latent(model, positive, empty, 0, collection_sigmas(model, 1))
        kept = [str(result["samples"].dtype), sorted(result)]
    print(json.dumps({"evaluations": seen, **counts, "same": same, "result": kept}))
