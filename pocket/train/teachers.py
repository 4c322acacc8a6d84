"""Train the pocket's teachers: one small LoRA an effect, plain flow matching on (source, effect of source)
pairs.

`python -m collectionlora.pocket.train.teachers --weights DIR --out DIR [--only NAME ...]` writes
OUT/NAME.safetensors; effects whose file exists are skipped. A teacher has its own prompt and knows nothing
of tags or few steps.
"""

from __future__ import annotations

import argparse
import math
import time
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...collection.layouts import write_lora
from ...training.flow import add_noise, shift, velocity_target
from ...training.hosts.plain_attention import PlainAttention
from ...training.hosts.pocket import PocketHost
from ...training.lora import LoraAdapter, target_shapes
from ...training.roles import Roles
from ..effects import EFFECTS, PocketEffect
from ..images import ImageSource
from .base import TIME_SHIFT

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "img_mod.1", "img_mlp.net.0.proj", "img_mlp.net.2")
"""The image stream only: half the size of all targets, and the effects are about images."""
PAIRS = 1024


def pairs(host: PocketHost, effect: PocketEffect, images: ImageSource, seed: int) -> tuple[Tensor, Tensor]:
    """PAIRS latents of training pictures and of their effects, each (PAIRS,16,16,16) half precision."""
    rng = np.random.default_rng([30, seed])
    sources = [images.sample(rng, "train") for _ in range(PAIRS)]
    targets = [effect.apply(source, rng) for source in sources]

    def encode(pictures: list[np.ndarray]) -> Tensor:
        return host.encode_image(torch.from_numpy(np.stack(pictures)).movedim(-1, 1)).half()

    return encode(sources), encode(targets)


class Workshop:
    """One adapter on the pocket base and one training step, which all teachers use in turn: what is compiled
    is compiled once.
    """

    def __init__(self, host: PocketHost, rank: int, compiled: bool, bfloat16: bool) -> None:
        self.host = host
        self.shapes = target_shapes(host.transformer, TARGETS)
        self.adapter = LoraAdapter.create(self.shapes, rank, rank, 0).to(host.device)
        self.roles = Roles(host.transformer, {"teacher": self.adapter})

        def loss(x0: Tensor, noise: Tensor, sigma: Tensor, words: Tensor, source: Tensor) -> Tensor:
            with torch.autocast(host.device.type, torch.bfloat16, enabled=bfloat16):
                v = host.velocity(add_noise(x0, noise, sigma), sigma, words, source)
            return (v.float() - velocity_target(x0, noise)).square().mean()

        if compiled:
            host.transformer.set_attn_processor(PlainAttention())
        self.loss = torch.compile(loss) if compiled else loss

    def train(self, effect: PocketEffect, images: ImageSource, steps: int, batch: int, lr: float) -> None:
        """Make the adapter a teacher of `effect`; prints its loss now and then."""
        seed = zlib.crc32(effect.name.encode())  # its own whichever others there are
        source, target = pairs(self.host, effect, images, seed)
        fresh = LoraAdapter.create(self.shapes, self.adapter.rank, self.adapter.alpha, seed)
        self.adapter.load(fresh.weights())
        optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
        words = self.host.encode_text([effect.teacher_prompt])[0].expand(batch, -1, -1).contiguous()
        random = torch.Generator().manual_seed(seed)
        start, recent = time.time(), 0.0
        with self.roles, self.roles.use("teacher"):
            for step in range(steps):
                rate = min(1, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.param_groups[0]["lr"] = lr * rate
                chosen = torch.randint(PAIRS, (batch,), generator=random)
                x0 = target[chosen].float()
                noise = torch.randn(x0.shape, generator=random).to(self.host.device)
                sigma = shift(torch.rand(batch, generator=random), TIME_SHIFT).to(self.host.device)
                loss = self.loss(x0, noise, sigma, words, source[chosen].float())
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
                optimizer.step()
                recent = loss.item() if step == 0 else 0.97 * recent + 0.03 * loss.item()
                if (step + 1) % 50 == 0:
                    seconds = time.time() - start
                    print(
                        f"{effect.name} step {step + 1} loss {recent:.4f} seconds {seconds:.0f}", flush=True
                    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the pocket base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="node_modules folder with the picture packages")
    parser.add_argument("--only", nargs="*", default=list(EFFECTS))
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rank", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--compile", action="store_true", help="see pocket.train.base")
    parser.add_argument("--bfloat16", action="store_true", help="see pocket.train.base")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    host = PocketHost(args.weights, "cuda" if torch.cuda.is_available() else "cpu")
    images = ImageSource(args.images)
    workshop = Workshop(host, args.rank, args.compile, args.bfloat16)
    for name in args.only:
        path = args.out / f"{name}.safetensors"
        if not path.exists():
            workshop.train(EFFECTS[name], images, args.steps, args.batch, args.lr)
            weights = workshop.adapter.weights()
            for part in (weights.down, weights.up):
                part.update({key: tensor.bfloat16() for key, tensor in part.items()})
            write_lora(weights, path, "comfy", {"prompt": EFFECTS[name].teacher_prompt})


if __name__ == "__main__":
    main()
