"""Fifty teachers do not fit: files on the disk, a few LoRAs in RAM, those of the batch on the device."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..collection.errors import LoraFormatError
from ..collection.layouts import files_of, read_lora
from ..collection.lora_weights import LoraWeights, Shapes
from .lora import TeacherStack


@dataclass
class BankStats:
    """How often a teacher came from its file (``loads``) or was found in RAM (``hits``)."""

    loads: int = 0
    hits: int = 0


class TeacherBank:
    """N teacher LoRAs by name, read when needed.

    A file is memory-mapped while it is read; the last ``ram`` LoRAs used stay in RAM, in ``dtype`` and, for
    CUDA, pinned. One background thread does all reading and copying, so that :meth:`prefetch` costs the
    caller nothing.

    Args:
        files: teacher name -> file or folder in any layout that ``read_lora`` knows.
        shapes: module path -> (out, in) of *all* Linears of the base.
        ram: how many LoRAs to keep in RAM, at least 1.

    Raises:
        LoraFormatError: at once, if a file is missing, truncated, or for another architecture or size. Only
            headers are read for that; NaN and infinities are found when a teacher is first used.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        shapes: Shapes,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ram: int = 8,
    ) -> None:
        if ram < 1:
            raise ValueError(f"ram must be at least 1 LoRA, not {ram}")
        self.files = dict(files)
        self.stats = BankStats()
        self._shapes = dict(shapes)
        self._device = torch.device(device)
        self._dtype = dtype
        self._ram = ram
        self._kept: OrderedDict[str, LoraWeights] = OrderedDict()  # of the thread alone: needs no lock
        self._coming: dict[str, Future[LoraWeights]] = {}
        self._stacked: TeacherStack | None = None
        # nothing of this bank: the thread keeps it as long as it lives, which is as long as the bank does
        self._thread = ThreadPoolExecutor(1, "teacher-bank", _make_current, (self._device,))
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stamps = {name: _stamp(file) for name, file in self.files.items()}
        for file in self.files.values():
            read_lora(file, self._shapes, check_finite=False)  # mapped and dropped: a wrong file fails here

    @cached_property
    def hashes(self) -> dict[str, str]:
        """Of what is read of each teacher. A run asks for them before it begins: a file whose hash is another
        one later is refused."""
        return {name: lora_hash(file) for name, file in self.files.items()}

    def prefetch(self, names: Iterable[str]) -> None:
        """Start bringing these teachers to the device and return at once. They wait there for :meth:`stack`.

        Raises:
            ValueError: a name the bank does not hold.
        """
        wanted = tuple(dict.fromkeys(names))
        if self._stacked is not None and self._stacked.names == wanted:
            return  # there already: a second copy would stay on the device unused
        for name in wanted:
            if name not in self.files:
                raise ValueError(f"the bank holds no teacher {name!r}")
            if name not in self._coming:
                self._coming[name] = self._thread.submit(self._fetch, name)

    def stack(self, names: Iterable[str]) -> TeacherStack:
        """The named teachers on the device, each once, in order of first mention; waits for those on the way.

        Raises:
            ValueError: a name the bank does not hold.
            LoraFormatError: a file that has changed since the start, or holds NaN or infinities.
        """
        wanted = tuple(dict.fromkeys(names))
        if self._stacked is None or self._stacked.names != wanted:
            self._stacked = None  # before the next one: two may not fit
            self.prefetch(wanted)
            teachers = {name: self._coming.pop(name).result() for name in wanted}
            if self._stream is None:
                teachers = {name: _on(self._device, one) for name, one in teachers.items()}
            else:
                for teacher in teachers.values():
                    for tensor in (*teacher.down.values(), *teacher.up.values()):
                        # allocated on the thread's stream, read on this one: not to be reused before
                        tensor.record_stream(torch.cuda.current_stream(self._device))
            self._stacked = TeacherStack.of(teachers)
        return self._stacked

    def close(self) -> None:
        """Let all teachers go, on the device and in RAM, and the thread: nothing more can be asked."""
        self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
        self._kept.clear()
        self._stacked = None

    def _fetch(self, name: str) -> LoraWeights:
        """In the thread: one teacher on a CUDA device, ready for use; for others in RAM, as Apple's
        take no two threads at a time."""
        weights = self._from_ram(name)
        if self._stream is None:
            return weights
        with torch.cuda.stream(self._stream):  # of its own, not to wait for the training's kernels
            there = _on(self._device, weights, non_blocking=True)
        self._stream.synchronize()
        return there

    def _from_ram(self, name: str) -> LoraWeights:
        """In the thread: one teacher in RAM, alpha folded into B."""
        if name in self._kept:
            self.stats.hits += 1
            self._kept.move_to_end(name)
            return self._kept[name]
        self.stats.loads += 1
        while len(self._kept) >= self._ram:  # before reading: room for one more is not a given
            self._kept.popitem(last=False)
        lora = read_lora(self.files[name], self._shapes)
        weights = LoraWeights(
            {path: self._own(down) for path, down in lora.down.items()},
            {path: self._own(up.float() * lora.scale(path)) for path, up in lora.up.items()},
            {path: float(lora.rank(path)) for path in lora.down},
        )
        self._require_unchanged(name)  # now: it may have been written while it was read
        self._kept[name] = weights
        return weights

    def _require_unchanged(self, name: str) -> None:
        """Raises LoraFormatError for a file that is another one now: one effect would have two teachers."""
        file = self.files[name]
        if (stamp := _stamp(file)) == self._stamps[name]:
            return
        if lora_hash(file) != self.hashes[name]:
            raise LoraFormatError(
                f"{file}: the teacher has changed since the run began; put the old file back, or start again"
            )
        self._stamps[name] = stamp  # the same content, touched or copied

    def _own(self, tensor: Tensor) -> Tensor:
        # a copy always: a mapped tensor would be read from the disk again, and fault if its file has shrunk
        copy = tensor.to(self._dtype, copy=True)
        if self._stream is None:
            return copy
        try:
            return copy.pin_memory()
        except RuntimeError:  # no more memory may be locked: this teacher comes more slowly
            return copy


def _on(device: torch.device, weights: LoraWeights, non_blocking: bool = False) -> LoraWeights:
    down, up = (
        {path: tensor.to(device, non_blocking=non_blocking) for path, tensor in part.items()}
        for part in (weights.down, weights.up)
    )
    return LoraWeights(down, up, weights.alpha)


def _stamp(lora: Path) -> list[tuple[str, int, int]]:
    """What changes when a teacher's files do."""
    found = [(file, file.stat()) for file in files_of(lora)]
    return [(str(file), stat.st_size, stat.st_mtime_ns) for file, stat in found]


def lora_hash(path: Path) -> str:
    """sha256 of what is read of a LoRA file or folder, with the files' names. Raises LoraFormatError."""
    digest = hashlib.sha256()
    files = files_of(path)
    if path.is_dir():
        files.sort()  # as ever: teacher images and states are known by it
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            while part := content.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def _make_current(device: torch.device) -> None:
    """In the thread, which would take hold of the first device too."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
