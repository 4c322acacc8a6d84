"""Teacher images: made once, kept on disk under the hash of all that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, stack, tensor

from ..collection.atomic import atomic_write
from .bank import TeacherBank
from .data import TeacherPath
from .errors import Cancelled
from .flow import few_step_sigmas, nearest_sigmas
from .host import Host
from .randomness import generator
from .roles import Roles
from .sampling import sample_teachers

TEACHER_IMAGES = "teacher_images"
"""The folder of a run's folder that keeps them."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """One teacher image to make: effect, teacher prompt, source as uint8 (3,H,W) with its latent (C,h,w)."""

    effect: str
    prompt: str
    pixels: Tensor
    source: Tensor
    encode: Callable[[str, Tensor], Tensor]
    """(prompt, pixels) -> (T,D); not asked for an image that is there already."""

    @cached_property
    def text(self) -> Tensor:
        """Embedding of the prompt."""
        return self.encode(self.prompt, self.pixels)

    @cached_property
    def empty(self) -> Tensor:
        """Embedding of the empty prompt."""
        return self.encode("", self.pixels)


@dataclass(frozen=True, eq=False)
class TeacherImage:
    """A latent (C,h,w), and the way to it where it is kept."""

    latent: Tensor
    path: TeacherPath | None = None

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        latent = {"latent": self.latent.contiguous()}
        if self.path is None:
            return latent
        return {**latent, "sigmas": self.path.sigmas, "states": self.path.states.contiguous()}


class TeacherImageMaker:
    """Makes teacher images and remembers them in `folder`, one file each.

    The key covers the teacher's file, its prompt, the source's pixels, the host's weights and the sampler, so
    that a changed teacher is never served an old image. It covers no computed number: another machine or
    thread count rounds differently and must still find its images. A run that was cut off goes on where it
    stopped.

    Args:
        path_sigmas: the states nearest to these on the way to each image are kept with it. Images that are
            remembered without them are made anew.
    """

    def __init__(
        self,
        host: Host,
        bank: TeacherBank,
        folder: Path,
        steps: int,
        guidance: float,
        batch: int,
        seed: int,
        path_sigmas: Sequence[float] = (),
    ) -> None:
        self.host, self.bank = host, bank
        self.folder, self.steps, self.guidance, self.batch, self.seed = folder, steps, guidance, batch, seed
        self.path_sigmas = nearest_sigmas(few_step_sigmas(steps), path_sigmas)

    def make(
        self, roles: Roles, wanted: Sequence[Wanted], cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, TeacherImage]]:
        """(index, image) for each wanted image, those on disk first. Stops early if cancelled.

        Raises ValueError for a teacher whose image is not finite: it is not kept.
        """
        keys = [self._key(one) for one in wanted]
        paths = [self.folder / f"{key}.safetensors" for key in keys]
        missing = []
        for i, path in enumerate(paths):
            try:
                yield i, self._read(path)
            except (FileNotFoundError, SafetensorError, KeyError):  # not there yet, or damaged: make it
                missing.append(i)
        for chosen in self._batches(wanted, missing):
            if cancelled():
                return
            try:
                some = self._sample(roles, [wanted[i] for i in chosen], [keys[i] for i in chosen], cancelled)
            except Cancelled:
                return
            for i, image in zip(chosen, some):
                if not image.latent.isfinite().all():
                    raise ValueError(
                        f"the teacher of {wanted[i].effect!r} makes pictures of NaN or infinity; use another "
                        "dtype of the base, another attention, or another LoRA"
                    )
                with atomic_write(paths[i]) as temporary:
                    save_file(image.tensors(), temporary)
                yield i, image

    def _batches(self, wanted: Sequence[Wanted], missing: Sequence[int]) -> Iterator[list[int]]:
        """Of one teacher as far as possible, which costs no batched matmul, and of one size: pictures of
        several sizes cannot be stacked, nor, for every model, prompts of several lengths."""

        def sizes(i: int) -> list[list[int]]:
            return [list(part.shape) for part in (wanted[i].text, wanted[i].empty, wanted[i].source)]

        for _, alike in groupby(sorted(missing, key=lambda i: (sizes(i), wanted[i].effect)), sizes):
            some = list(alike)
            yield from (some[start : start + self.batch] for start in range(0, len(some), self.batch))

    def _read(self, file: Path) -> TeacherImage:
        """Raises KeyError for one without the states that are wanted, or with what is no number."""
        tensors = load_file(file)
        latent = tensors["latent"].to(self.host.device)
        if not latent.isfinite().all():
            raise KeyError("latent")
        if not self.path_sigmas:
            return TeacherImage(latent)
        path = TeacherPath(tensors["sigmas"], tensors["states"])
        if not path.sigmas.equal(tensor(self.path_sigmas)):
            raise KeyError("sigmas")
        return TeacherImage(latent, path)

    def _sample(
        self, roles: Roles, wanted: Sequence[Wanted], keys: Sequence[str], cancelled: Callable[[], bool]
    ) -> Iterator[TeacherImage]:
        passed = []

        def visit(sigma: float, x: Tensor) -> None:
            if cancelled():
                raise Cancelled
            if sigma in self.path_sigmas:
                passed.append(x.half().cpu())

        latents = sample_teachers(
            self.host,
            roles,
            self.bank,
            [one.effect for one in wanted],
            stack([one.text for one in wanted]).to(self.host.device),
            stack([one.empty for one in wanted]).to(self.host.device),
            stack([one.source for one in wanted]).to(self.host.device),
            [generator(self.seed, "target", key) for key in keys],
            self.steps,
            self.guidance,
            visit=visit,
        )
        if not passed:
            return map(TeacherImage, latents)
        sigmas = tensor(self.path_sigmas)
        return map(TeacherImage, latents, [TeacherPath(sigmas, states) for states in stack(passed, 1)])

    def _key(self, one: Wanted) -> str:
        teacher = self.bank.hashes[one.effect]
        settings = [self.host.identity, teacher, one.prompt, self.steps, self.guidance, self.seed]
        digest = hashlib.sha256(json.dumps([*settings, list(one.pixels.shape)]).encode())
        digest.update(one.pixels.numpy().tobytes())
        return digest.hexdigest()[:40]
