"""Train the pocket autoencoder on shards of `pool`.

`python -m collectionlora.pocket.train.autoencoder --pool DIR --out FILE` trains both halves; with
`--decoder-only` the encoder of FILE stays as it is (latents that others were trained on keep their meaning)
and only the decoder goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ...collection.atomic import atomic_write
from ..autoencoder import Autoencoder

LATENT_NOISE = 0.02
"""Noise on unit-variance latents in training: the decoder must forgive what a diffusion model gets slightly
wrong.

More (0.1) costs 5 dB: the first channels carry the brightness of a whole patch, where a tenth is visible.
"""
CROP = 64
"""Side of the training crops; convolutions do not need the whole picture."""


class Shards:
    """Random batches of sources and targets; rereads a shard now and then, so new shards join while
    training.
    """

    def __init__(self, pool: Path, seed: int, device: torch.device) -> None:
        self.pool, self.rng, self.device = pool, np.random.default_rng(seed), device
        self.images = np.empty(0)

    def batch(self, step: int, size: int) -> Tensor:
        """(size,3,H,W) float32 in [0,1]."""
        if step % 60 == 0:
            paths = sorted(self.pool.glob("*.npz"))
            chosen = self.rng.choice(len(paths), min(2, len(paths)), replace=False)
            shards = [np.load(paths[i]) for i in chosen]
            self.images = np.concatenate([s[key] for s in shards for key in ("source", "target")])
        top, left = self.rng.integers(self.images.shape[1] - CROP + 1, size=2)
        picked = self.images[
            self.rng.integers(len(self.images), size=size), top : top + CROP, left : left + CROP
        ]
        return torch.from_numpy(picked).to(self.device).movedim(-1, 1).float() / 255


def loss_of(output: Tensor, images: Tensor) -> Tensor:
    """Squared error for fidelity, absolute error for contours, and the same of neighbour differences against
    seams.
    """
    loss = F.mse_loss(output, images) * 4 + F.l1_loss(output, images) * 0.5
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=axis), images.diff(dim=axis))
    return loss


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    model = Autoencoder().to(device)
    shards = Shards(args.pool, args.seed, device)
    if args.decoder_only:
        model.load_state_dict(load_file(args.out))
        model.encoder.requires_grad_(False)
    else:
        model.start_from_pca(shards.batch(0, 512))
    trained = model.decoder if args.decoder_only else model
    linear = [p for name, p in trained.named_parameters() if "linear" in name]
    rest = [p for name, p in trained.named_parameters() if "linear" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "scale": 1.0}, {"params": linear, "scale": 0.1}], weight_decay=1e-4
    )
    start = time.time()
    for step in range(1, args.steps + 1):
        rate = min(1, step / 50) * (1 - (step - 1) / args.steps) ** 0.5
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate * group["scale"]
        images = shards.batch(step - 1, args.batch)
        model.train()
        latents = model.encode(images)
        output = model.decode(latents + LATENT_NOISE * torch.randn_like(latents))
        loss = loss_of(output, images)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step in (1, args.steps):
            model.eval()
            if not args.decoder_only:
                model.calibrate(shards.batch(step + 1, 512))
            with torch.no_grad():
                check = shards.batch(step + 1, 64)
                error = (model.decode(model.encode(check)) - check).square().mean((1, 2, 3))
            psnr = float((-10 * error.clamp_min(1e-8).log10()).mean())
            print(
                f"step {step} loss {loss:.4f} psnr {psnr:.2f} seconds {time.time() - start:.0f}", flush=True
            )
            with atomic_write(args.out) as temporary:
                save_file(model.state_dict(), temporary)


if __name__ == "__main__":
    main()
