"""Train the pocket base (transformer and text encoder together) to follow general edits; flow matching,
nothing else.

`python -m collectionlora.pocket.train.base --pool DIR --autoencoder FILE --out DIR --minutes 60` writes
DIR/base.pt (to go on from: the same command continues), DIR/transformer.safetensors and DIR/text.safetensors
(moving averages, bf16). Learning rates hold, then fall to zero over the last part; `base.pt` is written
before they fall, so that a later and longer run starts from the plateau.
"""

from __future__ import annotations

import argparse
import json
import re
import string
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...collection.atomic import atomic_write
from ...training.flow import add_noise, shift, velocity_target
from ...training.hosts.diffusers import EditVelocity, pocket_transformer
from ..autoencoder import Autoencoder
from ..text import TextEncoder, prompt_bytes

EMPTY = 0.1
"""Share of lessons without words, for classifier-free guidance."""
GIBBERISH = 0.2
"""Share of lessons whose instruction follows a meaningless tag: unseen tags must neither disturb nor fall
together.
"""
TIME_SHIFT = 2.0
SHARPNESS = re.compile(r"attn\.norm_[qk]\.weight$")
"""Scales of queries and keys of the image stream. They are normed and heads are narrow (32), so these scales
alone decide whether a token can look at *one* other place, which an edit needs first. From 1 they take
thousands of steps.
"""
SHARP = 2.5


class Lessons:
    """Latent pairs in memory; one more shard of the pool joins at every `grow`."""

    def __init__(self, pool: Path, autoencoder: Autoencoder, device: torch.device) -> None:
        self.pool, self.autoencoder, self.device = pool, autoencoder, device
        self.loaded: set[Path] = set()
        self.sources: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.instructions: list[list[str]] = []

    def grow(self) -> None:
        fresh = [path for path in sorted(self.pool.glob("*.npz")) if path not in self.loaded]
        if not fresh:
            return
        self.loaded.add(fresh[0])
        shard = np.load(fresh[0])
        self.sources.append(self._encode(shard["source"]))
        self.targets.append(self._encode(shard["target"]))
        self.instructions.append(json.loads(bytes(shard["instruction"]).decode()))

    @torch.no_grad()
    def _encode(self, images: np.ndarray) -> Tensor:
        parts = []
        for start in range(0, len(images), 32):
            part = torch.from_numpy(images[start : start + 32]).to(self.device).movedim(-1, 1).float() / 255
            parts.append(self.autoencoder.encode(part).half())
        return torch.cat(parts)

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, list[str]]:
        """Sources and targets (size,16,h,w) float32 and their instructions."""
        sources, targets, words = [], [], []
        for shard in rng.integers(len(self.targets), size=size):
            i = int(rng.integers(len(self.targets[shard])))
            each = len(self.targets[shard]) // len(self.sources[shard])
            sources.append(self.sources[shard][i // each])
            targets.append(self.targets[shard][i])
            words.append(disturb(self.instructions[shard][i], rng))
        return torch.stack(sources).float(), torch.stack(targets).float(), words


def disturb(instruction: str, rng: np.random.Generator) -> str:
    """The instruction, now and then emptied or put behind a random tag."""
    draw = rng.random()
    if draw < EMPTY:
        return ""
    if draw < EMPTY + GIBBERISH:
        letters = np.array(list(string.ascii_letters + string.digits))
        name = "".join(rng.choice(letters[:26], int(rng.integers(3, 11))))
        return f"<{name}_{''.join(rng.choice(letters, 8))}> {instruction}"
    return instruction


def optimizers(transformer: nn.Module, text: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for what is left; each group remembers its full rate as "peak"."""
    named = [
        (name, p)
        for name, p in transformer.named_parameters()
        if "transformer_blocks" in name and p.ndim == 2
    ]
    # The modulation's matrices are as costly to orthogonalise as all of attention, for one vector a sample.
    # AdamW moves each of their numbers by its whole rate, several times what Muon would, and they scale
    # everything: hence a small one.
    modulation = [p for name, p in named if "_mod." in name]
    hidden = [p for name, p in named if "_mod." not in name]
    sharpness = [p for name, p in transformer.named_parameters() if SHARPNESS.search(name)]
    known = {id(p) for p in (*modulation, *hidden, *sharpness)}
    rest = [p for p in [*transformer.parameters(), *text.parameters()] if id(p) not in known]
    made = [
        torch.optim.Muon(hidden, lr=2 * lr, weight_decay=0.01),
        torch.optim.AdamW(
            [
                {"params": rest, "lr": lr / 2},
                {"params": modulation, "lr": lr / 6},
                {"params": sharpness, "lr": 2 * lr},
            ],
            betas=(0.9, 0.98),
        ),
    ]
    for optimizer in made:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return made


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=60, help="length of this run, its falling end included"
    )
    parser.add_argument("--decay", type=float, default=0.2, help="share of the run over which rates fall")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="folder of weights to start from, if OUT holds no base.pt")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="a quarter faster on a CPU; needs a C++ compiler",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    transformer, text = pocket_transformer().to(device), TextEncoder().to(device)
    for name, parameter in transformer.named_parameters():
        if SHARPNESS.search(name):
            nn.init.constant_(parameter, SHARP)
    model = nn.ModuleDict({"transformer": transformer, "text": text})
    if args.start:
        for name, part in (("transformer", transformer), ("text", text)):
            weights = load_file(args.start / f"{name}.safetensors")
            part.load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    velocity = EditVelocity(transformer)

    def flow_matching(target: Tensor, noise: Tensor, sigma: Tensor, words: Tensor, source: Tensor) -> Tensor:
        output = velocity(add_noise(target, noise, sigma), sigma, text(words), source)
        return (output - velocity_target(target, noise)).square().mean()

    if args.compile:
        flow_matching = torch.compile(flow_matching)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)
    )
    trainers = optimizers(transformer, text, args.lr)
    first, checkpoint = 0, args.out / "base.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for trainer, saved in zip(trainers, state["trainers"], strict=True):
            trainer.load_state_dict(saved)
        first = state["step"]
    lessons = Lessons(args.pool, Autoencoder.load(args.autoencoder).to(device), device)
    for _ in range(4):
        lessons.grow()
    rng = np.random.default_rng([args.seed, first])
    start, step, recent = time.time(), first, 0.0
    while (progress := (time.time() - start) / (60 * args.minutes)) < 1:
        if step % 40 == 0:
            lessons.grow()
        rate = min(1.0, (step - first + 1) / 100, (1 - progress) / args.decay)
        for trainer in trainers:
            for group in trainer.param_groups:
                group["lr"] = group["peak"] * rate
        source, target, words = lessons.batch(rng, args.batch)
        sigma = shift(torch.rand(len(target), device=device), TIME_SHIFT)
        noise = torch.randn_like(target)
        loss = flow_matching(target, noise, sigma, prompt_bytes(words).to(device), source)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for trainer in trainers:
            trainer.step()
        average.update_parameters(model)
        step += 1
        recent = 0.98 * recent + 0.02 * loss.item() if step > first + 1 else loss.item()
        if step % 50 == 0:
            seconds = time.time() - start
            line = f"step {step} loss {recent:.4f} lr {rate:.3f} shards {len(lessons.loaded)}"
            print(f"{line} seconds {seconds:.0f}", flush=True)
        if step % 500 == 0:
            if progress < 1 - args.decay:
                state = {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "trainers": [trainer.state_dict() for trainer in trainers],
                    "step": step,
                }
                with atomic_write(checkpoint) as temporary:
                    torch.save(state, temporary)
            export(average.module, args.out)
    export(average.module, args.out)


def export(model: nn.Module, folder: Path) -> None:
    """Write the two files that ship, bf16."""
    for name in ("transformer", "text"):
        weights = {k: v.bfloat16().contiguous() for k, v in model[name].state_dict().items()}  # type: ignore[index]
        with atomic_write(folder / f"{name}.safetensors") as temporary:
            save_file(weights, temporary)


if __name__ == "__main__":
    main()
