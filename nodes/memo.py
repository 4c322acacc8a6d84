"""Results that are remembered beyond ComfyUI's own cache, which keeps a node's last result only."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn


class Memo:
    """The last `size` results of each model; they go when the model goes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._of: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = WeakKeyDictionary()

    def get(self, model: nn.Module, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is remembered of `model` under `key`, or what `make()` returns."""
        known = self._of.setdefault(model, OrderedDict())
        if key not in known:
            known[key] = make()
            if len(known) > self.size:
                known.popitem(last=False)
        known.move_to_end(key)
        return known[key]


def content_key(image: Tensor) -> tuple[Any, ...]:
    """What tells pictures apart."""
    data = image.detach().cpu().contiguous().numpy().tobytes()
    return tuple(image.shape), hashlib.sha256(data).digest()
