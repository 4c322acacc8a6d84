"""What one would do without distillation: PEFT's ways of merging the teachers into one LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..collection.layouts import read_lora, write_lora
from ..collection.lora_weights import LoraWeights, Shapes

MERGES: dict[str, dict[str, Any]] = {
    "svd": {"combination_type": "svd"},
    "ties": {"combination_type": "ties_svd", "density": 0.2},
    "dare": {"combination_type": "dare_linear_svd", "density": 0.5},
}
"""PEFT's options of each merge; TIES keeps a fifth of the entries as its paper does."""


def merge(teachers: Sequence[LoraWeights], shapes: Shapes, how: str, rank: int) -> LoraWeights:
    """Merge LoRAs into one of `rank` as `MERGES[how]` says.

    Each has weight 1/sqrt(count), with which unrelated deltas add up to the strength of one; TIES, which
    averages, has weight 1. `shapes`: module path -> (out, in) of every module a teacher may adapt. DARE drops
    entries at random, here always the same. Raises ModuleNotFoundError without PEFT.
    """
    from peft import PeftModel

    weight = 1.0 if how == "ties" else len(teachers) ** -0.5
    names = [f"teacher{number}" for number in range(len(teachers))]  # PEFT takes no name with a dot
    with TemporaryDirectory() as name, warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that a bare module has no config and no base model's card
        torch.manual_seed(0)  # noqa: TID251 - PEFT knows no other; it is put back after
        folder = Path(name)
        for teacher, weights in zip(names, teachers):
            write_lora(weights, folder / teacher, "peft")
        first, *others = names
        model = PeftModel.from_pretrained(_skeleton(shapes), str(folder / first), adapter_name=first)
        for teacher in others:
            model.load_adapter(str(folder / teacher), adapter_name=teacher)
        model.base_model.add_weighted_adapter(
            names, [weight] * len(names), "merged", svd_rank=rank, **MERGES[how]
        )
        model.save_pretrained(str(folder / "out"), selected_adapters=["merged"])
        return read_lora(folder / "out" / "merged", shapes)


def _skeleton(shapes: Shapes) -> nn.Module:
    """Linears of these shapes at their paths and nothing else: merging never looks at a base's weights."""
    root = nn.Module()
    for path, (rows, columns) in shapes.items():
        *above, last = path.split(".")
        module = root
        for part in above:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.add_module(last, nn.Linear(columns, rows, bias=False))
    return root
