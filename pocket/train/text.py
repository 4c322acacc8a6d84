"""Teach the pocket's text encoder words before it meets pictures.

`python -m collectionlora.pocket.train.text --out DIR` writes DIR/text.safetensors, two minutes on a CPU. From
single bytes and the loss of a picture alone, words are learned last of all, and until then the base cannot
know which edit is asked for. Here the mean of the encoder's tokens has to tell the family of a general edit
and which words its instruction holds, meaningless tags or not.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ...collection.atomic import atomic_write
from ..edits import FAMILIES
from ..text import WIDTH, TextEncoder, prompt_bytes
from .base import disturb

LESSONS = 40_000


def lessons(rng: np.random.Generator, size: int) -> tuple[list[str], Tensor, Tensor, int]:
    """`size` instructions, families (N,) long, words (N,V) float, number of families."""
    names = list(FAMILIES)
    drawn = [int(i) for i in rng.integers(len(names), size=size)]
    instructions = [FAMILIES[names[i]][1](rng).instruction for i in drawn]
    words = sorted({word for one in instructions for word in one.replace(",", "").split()})
    places = {word: k for k, word in enumerate(words)}
    held = torch.zeros(size, len(words))
    for row, one in zip(held, instructions):
        row[[places[word] for word in one.replace(",", "").split()]] = 1
    return instructions, torch.tensor(drawn), held, len(names)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng([60, args.seed])
    instructions, families, words, count = lessons(rng, LESSONS)
    encoder = TextEncoder()
    tell_family, tell_words = nn.Linear(WIDTH, count), nn.Linear(WIDTH, words.shape[1])
    parameters = [p for part in (encoder, tell_family, tell_words) for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.01)
    start = time.time()
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (step + 1) / 100, 3 * (1 - step / args.steps))
        chosen = torch.from_numpy(rng.integers(LESSONS, size=args.batch))
        prompts = [disturb(instructions[i], rng) or instructions[i] for i in chosen.tolist()]
        pooled = encoder(prompt_bytes(prompts)).mean(1)
        logits = tell_family(pooled)
        loss = F.cross_entropy(logits, families[chosen])
        loss = loss + 20 * F.binary_cross_entropy_with_logits(tell_words(pooled), words[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            right = float((logits.argmax(1) == families[chosen]).float().mean())
            seconds = time.time() - start
            print(f"step {step + 1} loss {loss:.4f} family {right:.3f} seconds {seconds:.0f}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.out / "text.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, temporary)


if __name__ == "__main__":
    main()
