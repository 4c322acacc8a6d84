"""What the trainer learns from, encoded once before the first cycle and kept in RAM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..collection.jsonl import EffectSample, GeneralSample
from .data import Lessons, Sample
from .errors import Cancelled
from .host import Host
from .pictures import to_floats, to_pixels

if TYPE_CHECKING:
    from .prepare import EffectPrompts, Pictures


def prompt_encoder(host: Host) -> Callable[[str, Tensor], Tensor]:
    """`encode(prompt, pixels)` -> (T,D) in RAM, each prompt once; where the encoder sees the picture, uint8
    (3,H,W), once for each."""
    known: dict[tuple[str, int], tuple[Tensor, Tensor | None]] = {}

    def encode(prompt: str, pixels: Tensor) -> Tensor:
        seen = pixels if host.text_sees_image else None
        key = (prompt, id(seen))
        if key not in known:  # the picture is kept, so that no other gets its id
            image = None if seen is None else to_floats(seen)
            known[key] = host.encode_text([prompt], image)[0].to("cpu", host.dtype), seen
        return known[key][0]

    return encode


def encode_general(
    host: Host,
    general: Sequence[GeneralSample],
    samples: Sequence[EffectSample],
    pictures: Sequence[Pictures],
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Sample]:
    """The general stream, encoded once, in RAM. `pictures` of the effects' samples are not read again.

    Raises ValueError for an unreadable picture; Cancelled.
    """
    known = {one.source_image: (own.pixels, own.source) for one, own in zip(samples, pictures, strict=True)}
    encoded: dict[int, Sample] = {}
    encode, path = prompt_encoder(host), None
    # source by source, for there may be too many to hold
    for i, one in sorted(enumerate(general), key=lambda numbered: numbered[1].source_image):
        if cancelled():
            raise Cancelled("cancelled while encoding the general stream")
        if one.source_image != path:
            path = one.source_image
            encode = prompt_encoder(host) if host.text_sees_image else encode
            if path in known:
                pixels, source = known[path]
            else:
                image = host.read_image(path)
                pixels, source = to_pixels(image), host.encode_image(image[None])[0]
        text = encode(one.instruction, pixels)
        encoded[i] = Sample(None, source.cpu(), text, text, encode("", pixels))
    return [encoded[i] for i in range(len(general))]


def encode_lessons(
    encode: Callable[[str, Tensor], Tensor],
    prompts: Mapping[str, EffectPrompts],
    samples: Sequence[EffectSample],
    pictures: Sequence[Pictures],
    general: Sequence[Sample],
    cancelled: Callable[[], bool] = lambda: False,
) -> Lessons:
    """Everything the trainer needs, encoded once by a `prompt_encoder`, in RAM. Raises Cancelled."""
    effects: dict[str, list[Sample]] = {name: [] for name in prompts}
    for sample, picture in zip(samples, pictures, strict=True):
        if cancelled():
            raise Cancelled("cancelled while encoding prompts")
        student = encode(prompts[sample.lora_name].student, picture.pixels)
        teacher = encode(sample.instruction, picture.pixels)
        empty = encode("", picture.pixels)
        effects[sample.lora_name].append(
            Sample(sample.lora_name, picture.source, student, teacher, empty, picture.target, picture.path)
        )
    return Lessons(effects, general)
