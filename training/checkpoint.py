"""The state of a run in one safetensors file: tensors by dotted name, everything else as JSON in its header.

No pickle is written or read. A file is replaced in one step, so a kill leaves the previous state or the new
one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..collection.atomic import atomic_write

VERSION = 1
KEY = "collectionlora_state"
State = dict[str, Any]
"""Nested dicts with string or int keys, whose leaves are tensors or JSON values."""


class CheckpointError(ValueError):
    """A checkpoint is unreadable or of another run; the message names the file and the remedy."""


def copied(state: Any, over: Any = None) -> Any:
    """A deep copy on the CPU that no later update can change.

    Args:
        over: an earlier copy that is no longer needed: its memory is used where the shapes are the same, for
            a copy from a GPU into new memory takes several times as long.
    """
    if isinstance(state, Mapping):
        old = over if isinstance(over, Mapping) else {}
        return {key: copied(value, old.get(key)) for key, value in state.items()}
    if isinstance(state, list | tuple):
        others = over if isinstance(over, list) and len(over) == len(state) else [None] * len(state)
        return [copied(value, other) for value, other in zip(state, others, strict=True)]
    if not isinstance(state, Tensor):
        return state
    if isinstance(over, Tensor) and (over.shape, over.dtype) == (state.shape, state.dtype):
        return over.copy_(state.detach())
    return state.detach().to("cpu", copy=True)


def save_state(path: Path, state: State) -> None:
    """Write `state` atomically; its tensors are on the CPU and share no memory (see :func:`copied`).

    Raises CollectionError when the disk is full; the previous file survives.
    """
    tensors: dict[str, Tensor] = {}
    plain = _split(state, "", tensors)
    metadata = {KEY: json.dumps({"version": VERSION, "state": plain})}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_state(path: Path, plain: bool = False) -> State:
    """Read what `save_state` wrote. Raises CheckpointError for a missing, damaged, newer or foreign file.

    plain: leave the tensors unread; None stands for each.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; start the run without resuming")
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "null"))
            names = [*file.keys()]
            # clones: tensors mapped from the file would keep Windows from replacing it
            tensors = {name: None if plain else file.get_tensor(name).clone() for name in names}
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({error}); delete it and start again"
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("version"), int):
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of a distillation")
    if header["version"] > VERSION:
        raise CheckpointError(
            f"{path}: version {header['version']}, this program reads {VERSION}; update the program"
        )
    try:
        state: State = dict(_join(header["state"], tensors))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: a damaged checkpoint ({error!r}); delete it and start again"
        ) from error
    return state


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON part of `value`; its tensors go to `tensors` and leave their name behind."""
    if isinstance(value, Tensor):
        name = f"{name}#{len(tensors)}" if name in tensors else name  # {"a.b": ...} and {"a": {"b": ...}}
        tensors[name] = value.contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        # pairs, because JSON would make text of a number that is a key
        items = [
            [key, _split(item, f"{name}.{key}" if name else str(key), tensors)] for key, item in value.items()
        ]
        return {"dict": items}
    if isinstance(value, list | tuple):
        return {"list": [_split(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _join(plain: Any, tensors: Mapping[str, Tensor | None]) -> Any:
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _join(item, tensors) for key, item in content}
    if kind == "list":
        return [_join(item, tensors) for item in content]
    if kind != "value":
        raise ValueError(f"a {kind!r} is no part of a state")
    return content


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The optimizer's moments; its hyperparameters come from the configuration."""
    state: State = optimizer.state_dict()["state"]
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Inverse of :func:`optimizer_state` on an optimizer of the same parameters."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
