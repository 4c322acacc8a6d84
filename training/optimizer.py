"""The optimizer of an adapter."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from .config import ConfigError, Distillation, OptimizerName
from .lora import LoraAdapter


def require_optimizer(name: OptimizerName) -> None:
    """Raises ConfigError saying what to install where bitsandbytes is missing."""
    if name != "adamw8bit":
        return
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ConfigError(
            'optimizer = "adamw8bit" needs the package bitsandbytes: pip install bitsandbytes, or set '
            'optimizer = "adamw"'
        ) from error


def make_optimizer(adapter: LoraAdapter, lr: float, config: Distillation) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form."""
    arguments: dict[str, Any] = {"lr": lr, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer == "adamw":
        # in one pass: hundreds of tensors, one after the other, keep a fast device waiting
        fused = next(adapter.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.AdamW(adapter.parameters(), fused=fused, **arguments)
    import bitsandbytes

    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(adapter.parameters(), **arguments)
    return made
