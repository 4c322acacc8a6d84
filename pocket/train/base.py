"""Train the pocket base (transformer and text encoder together) to follow general edits; flow matching,
nothing else.

`python -m collectionlora.pocket.train.base --pool DIR --autoencoder FILE --out DIR --steps 35000` writes
DIR/base.pt (to go on from: the same command continues), DIR/transformer.safetensors and DIR/text.safetensors
(moving averages, bf16). Learning rates hold, then fall to zero over the last part.
"""

from __future__ import annotations

import argparse
import json
import math
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
from ...training.hosts.plain_attention import PlainAttention
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


LOOKING = 2
"""Heads of each block that begin by looking at the source token of their own place; the next one begins by
reading the mean of the words.
"""


@torch.no_grad()
def give_a_start(transformer: nn.Module) -> None:
    """Begin with what every edit needs: open gates, heads that look the source up, and one that reads.

    To keep a pixel, a token must find the source token of its own place by rotary positions alone. From
    random weights that takes thousands of steps, in which nothing else can be learned. Here the first heads
    of each block have constant queries and keys on the fast rotary frequencies, turned by one frame; the head
    that reads has them on the slow ones, and keys of the image turned away.
    """
    for name, parameter in transformer.named_parameters():
        if SHARPNESS.search(name):
            nn.init.constant_(parameter, SHARP)
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            for gate in (2, 5):  # of shift, scale, gate for attention, then for the feed-forward
                modulation.bias.unflatten(0, (6, -1))[gate] = 1.0
        attention = block.attn
        frame, rows, columns = (0, 4, 10)  # first complex pairs of the rotary axes of 8, 12 and 12
        for linear, turn in ((attention.to_q, 1.0), (attention.to_k, 0.0)):
            heads = linear.weight.unflatten(0, (attention.heads, -1))[:LOOKING]
            pairs = linear.bias.unflatten(0, (attention.heads, -1, 2))[:LOOKING]
            heads *= 0.2
            pairs.zero_()
            pairs[:, [rows, rows + 1, columns, columns + 1], 0] = 1.0
            pairs[:, frame, 0], pairs[:, frame, 1] = math.cos(turn), math.sin(turn)
        read_words(attention)
        attention.to_out[0].weight *= 0.3
        block.img_mlp.net[2].weight *= 0.3
    content, found, constant = slice(0, 64), slice(64, 128), slice(128, 192)
    embed, first = transformer.img_in, transformer.transformer_blocks[0].attn
    embed.weight.zero_()
    embed.bias.zero_()
    nn.init.orthogonal_(embed.weight[content], 0.7)
    embed.bias[constant] = torch.tensor([1.0, -1.0]).repeat(32)
    first.to_v.weight[content] = torch.eye(64, 192)
    first.to_out[0].weight[:, content] = 0.0
    first.to_out[0].weight[found, content] = torch.eye(64)


@torch.no_grad()
def read_words(attention: nn.Module) -> None:
    """Let head LOOKING attend to all words alike and to no part of the picture."""
    for linear, sign in ((attention.to_q, 1.0), (attention.to_k, -1.0), (attention.add_k_proj, 1.0)):
        linear.weight.unflatten(0, (attention.heads, -1))[LOOKING] *= 0.2
        pairs = linear.bias.unflatten(0, (attention.heads, -1, 2))[LOOKING]
        pairs.zero_()
        pairs[[3, 9, 15], 0] = sign  # last complex pairs of the rotary axes: they hardly turn


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
        torch.optim.Muon(hidden, lr=3 * lr, weight_decay=0.01),
        torch.optim.AdamW(
            [
                {"params": rest, "lr": lr / 2},
                {"params": modulation, "lr": lr / 6},
                {"params": sharpness, "lr": lr},
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
    parser.add_argument("--steps", type=int, default=35000, help="those of a checkpoint in OUT included")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the steps over which rates fall")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start",
        type=Path,
        help="folder of transformer, text encoder or both to start from, if OUT holds no base.pt",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="faster on a CPU; needs a C++ compiler",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="products in bfloat16; much faster on a CPU with AMX and on GPUs",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    transformer, text = pocket_transformer().to(device), TextEncoder().to(device)
    give_a_start(transformer)
    model = nn.ModuleDict({"transformer": transformer, "text": text})
    if args.start:
        found = [name for name in model if (args.start / f"{name}.safetensors").is_file()]
        if not found:
            parser.error(f"--start {args.start}: holds neither transformer.safetensors nor text.safetensors")
        for name in found:
            weights = load_file(args.start / f"{name}.safetensors")
            model[name].load_state_dict({key: tensor.float() for key, tensor in weights.items()})
    velocity = EditVelocity(transformer)

    def flow_matching(target: Tensor, noise: Tensor, sigma: Tensor, words: Tensor, source: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bfloat16):
            output = velocity(add_noise(target, noise, sigma), sigma, text(words), source)
        return (output.float() - velocity_target(target, noise)).square().mean()

    if args.compile:
        transformer.set_attn_processor(PlainAttention())
        flow_matching = torch.compile(flow_matching)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
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
    for _ in range(20):
        lessons.grow()
    rng = np.random.default_rng([args.seed, first])
    start, recent = time.time(), 0.0
    for step in range(first + 1, args.steps + 1):
        if step % 40 == 0:
            lessons.grow()
        rate = min(1.0, step / 100, (1 - (step - 1) / args.steps) / args.decay)
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
        recent = 0.98 * recent + 0.02 * loss.item() if step > first + 1 else loss.item()
        if step % 50 == 0:
            seconds = time.time() - start
            line = f"step {step} loss {recent:.4f} lr {rate:.3f} shards {len(lessons.loaded)}"
            print(f"{line} seconds {seconds:.0f}", flush=True)
        if step % 500 == 0:
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
