"""Distil few-step sampling alone into a LoRA: what a "Lightning" LoRA is to the real model.

`python -m collectionlora.pocket.train.few_step --weights DIR --out DIR` trains on general edits only (no
effect, no teacher but the base) and writes the strongest half of what that came to, OUT/few_step.safetensors.
`collectionlora evaluate` puts it on each teacher, and the collection's student is sampled on top of it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from ...collection.file import load_collection
from ...collection.layouts import write_lora
from ...collection.lora_weights import LoraWeights
from ...console import Console, distil
from ...training.config import distillation
from ...training.hosts.pocket import PocketHost
from ...training.lora import added_up
from ...training.run_config import read_run
from .. import FEW_STEP, FOLDER

RANK, KEPT = 16, 8
"""Trained with the first; weaker directions are worth nothing measurable (docs/experiments.md)."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder of the pocket base")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cycles", type=int, default=400)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    shipped = read_run(FOLDER / "collection.toml")
    # A run has at least one effect; with p_effect = 0 it is never drawn.
    some = next(iter(shipped.lists.effects))
    run = replace(
        shipped,
        output=args.out,
        few_step=None,  # it is what is made here
        lists=shipped.lists.only([some], 1),
        titles={},
        distill=distillation(
            {"cycles": args.cycles, "warm_cycles": 0, "p_effect": 0.0, "rank": RANK},
            "pocket",
        ),
    )
    host = PocketHost(args.weights, "cuda" if torch.cuda.is_available() else "cpu")
    with Console() as console:
        distil(run, host, console, resume=run.checkpoint.exists())
    weights = strongest(load_collection(run.collection)[0], KEPT)
    write_lora(weights, args.out / FEW_STEP.name, "comfy")


def strongest(weights: LoraWeights, rank: int) -> LoraWeights:
    """The LoRA of at most `rank` that is nearest to this one, module by module. Its dtypes, scales 1."""
    whole = added_up([weights])
    kept = LoraWeights({}, {}, {})
    for path, down in whole.down.items():
        left, values, right = torch.linalg.svd(whole.up[path] @ down, full_matrices=False)
        root = values[:rank].sqrt()
        kept.down[path] = (root[:, None] * right[: len(root)]).to(weights.down[path].dtype)
        kept.up[path] = (left[:, : len(root)] * root).to(weights.up[path].dtype)
        kept.alpha[path] = float(len(root))
    return kept


if __name__ == "__main__":
    main()
