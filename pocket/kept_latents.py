"""Latents that an evaluation has made, kept on disk: one that was stopped goes on, and another collection is
judged beside the same teachers without their being sampled again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..collection.atomic import atomic_write

VERSION = 1
"""To be raised when the same inputs are sampled into other latents."""


class KeptLatents:
    """One file for each batch in `folder`, named by a hash of all that it depends on; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: Sequence[Any], make: Callable[[], Tensor]) -> Tensor:
        """The latents (n,C,h,w) of `key`, which JSON can hold: from disk, or made now and kept."""
        if self.folder is None:
            return make()
        name = hashlib.sha256(json.dumps([VERSION, *key]).encode()).hexdigest()[:40]
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)["latents"]
        except (FileNotFoundError, SafetensorError, KeyError):  # not there yet, or damaged: make it
            latents = make().cpu().contiguous()
            with atomic_write(path) as temporary:
                save_file({"latents": latents}, temporary)
            return latents
