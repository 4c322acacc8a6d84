"""From the user's lists to encoded lessons: images, teacher images, captions, tags (paper section 3.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..collection.atomic import write_text
from ..collection.catalogue import Catalogue
from ..collection.jsonl import EffectEntry, EffectSample
from .captions import VlmEndpoint, caption_template, caption_vlm, pairs_shown
from .data import TeacherPath
from .errors import Cancelled
from .host import Host
from .pictures import read_picture, to_floats, to_pixels, to_tensor
from .prompting import (
    IMAGES_AT_LEAST,
    TagReport,
    candidate_tags,
    choose_once,
    choose_tags,
    embed_over_images,
    student_prompt,
)
from .roles import Roles
from .teacher_images import TeacherImageMaker, Wanted
from .workers import ALONE, Workers

SHAPE_TOLERANCE = 0.05
"""How much the proportions of a pair may differ: models crop sides to multiples of up to 32 pixels."""

TAGS = "tags.json"
"""The file of a run's folder that keeps them."""
UNFINISHED = "cancelled while making teacher images; those made are kept"
_ORIENTATION = 0x0112
"""The EXIF field."""


class DataError(ValueError):
    """The lists do not fit together; the message names the effect or file and the remedy."""


@dataclass(frozen=True)
class EffectPrompts:
    """What the student is asked for an effect with; a teacher, by its samples' instructions."""

    tag: str
    student: str


@dataclass(frozen=True, eq=False)
class Pictures:
    """A source as uint8 (3,H,W), for there may be thousands, its latent (C,h,w), the latent of the teacher's
    image where there is one, and the way to it where that is kept. All in RAM.
    """

    pixels: Tensor
    source: Tensor
    target: Tensor | None
    path: TeacherPath | None = None

    @property
    def image(self) -> Tensor:
        """The source in [0,1]."""
        return to_floats(self.pixels)


@dataclass(frozen=True)
class Shown:
    """What the student's picture of an effect is made from, encoded; the text (T,D) is its own prompt's."""

    picture: Pictures
    text: Tensor


@dataclass
class Prepared:
    """All that is known before the first cycle."""

    prompts: dict[str, EffectPrompts]
    tags: TagReport
    catalogue: Catalogue
    """Without thumbnails and training summary."""
    examples: dict[str, Shown]
    """One of each effect, for thumbnails."""
    previews: dict[str, Shown]
    """Of the effects that are previewed, all on one source, with the teacher's image."""
    given: set[str]
    """The previewed effects whose result of that source is the user's own picture, not a teacher's."""


def check_lists(effects: Sequence[str], samples: Sequence[EffectSample], sees_image: bool) -> None:
    """Raise DataError for an effect without pictures, pictures without effect, or few sources where the text
    encoder sees them."""
    used = {sample.lora_name for sample in samples}
    for name in effects:
        if name not in used:
            raise DataError(f"effect {name!r} has no source image; add some to the data list or drop it")
    for name in sorted(used - {*effects}):
        raise DataError(
            f"there are pictures for {name!r}, which is none of the teachers; give both the same ones"
        )
    sources = {sample.source_image for sample in samples}
    if sees_image and len(sources) < IMAGES_AT_LEAST:
        raise DataError(
            f"the data list names {len(sources)} different sources: this base reads a prompt together with "
            f"the picture, and tags are chosen over {IMAGES_AT_LEAST} of them; add sources to the list"
        )


def read_pictures(
    host: Host, samples: Sequence[EffectSample], cancelled: Callable[[], bool] = lambda: False
) -> list[Pictures]:
    """Read and encode sources, each file once, and teacher images that the list already names: these in the
    size of their source, since proportions that differ a little may round to another.

    Raises DataError for a pair that does not match, naming both files; ValueError for an unreadable picture;
    Cancelled.
    """
    known: dict[Path, Pictures] = {}
    pictures = []
    for sample in samples:
        if cancelled():
            raise Cancelled("cancelled while reading pictures")
        if sample.source_image not in known:
            image = host.read_image(sample.source_image)
            source = host.encode_image(image[None])[0].cpu()
            known[sample.source_image] = Pictures(to_pixels(image), source, None)
        picture = known[sample.source_image]
        if sample.base_pred_image is not None:
            made = host.read_image(sample.base_pred_image)
            _check_pair(sample.source_image, sample.base_pred_image, picture.pixels)
            if made.shape != picture.pixels.shape:
                made = _fitted(sample.base_pred_image, picture.pixels)
            picture = replace(picture, target=host.encode_image(made[None])[0].cpu())
        pictures.append(picture)
    return pictures


def _fitted(path: Path, image: Tensor) -> Tensor:
    """The largest central part of a file with the proportions of `image` (3,H,W), in its size."""
    size = image.shape[2], image.shape[1]
    return to_tensor(ImageOps.fit(read_picture(path), size, Image.Resampling.LANCZOS))


def _check_pair(source: Path, result: Path, image: Tensor) -> None:
    """Raise DataError for a result of other proportions, or one that had to be enlarged."""
    (w, h), (result_w, result_h) = _size(source), _size(result)
    area = max(w * result_h, h * result_w)
    small = result_w < min(w, image.shape[2]) or result_h < min(h, image.shape[1])
    if small or abs(w * result_h - h * result_w) > SHAPE_TOLERANCE * area:
        raise DataError(
            f"{source} has {w} x {h} pixels but its result {result} {result_w} x {result_h}: a pair must "
            "have one size; take the result out of the data list to have it made anew"
        )


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        width, height = picture.size
        turned = picture.getexif().get(_ORIENTATION, 1) >= 5  # stored on its side, shown upright
        return (height, width) if turned else (width, height)


def on_one_source(
    names: Sequence[str], effects: Mapping[str, EffectEntry], samples: Sequence[EffectSample]
) -> dict[str, EffectSample]:
    """A sample of each of these effects, all of the source that most of them have (of equals the first)."""
    owners: dict[Path, dict[str, EffectSample]] = {}
    for sample in samples:
        if sample.lora_name in names:
            owners.setdefault(sample.source_image, {}).setdefault(sample.lora_name, sample)
    source, found = max(owners.items(), key=lambda one: len(one[1]), default=(Path(), {}))
    return {name: found.get(name) or EffectSample(source, effects[name].prompt, name, None) for name in names}


def make_teacher_images(
    encode: Callable[[str, Tensor], Tensor],
    roles: Roles,
    maker: TeacherImageMaker,
    samples: Sequence[EffectSample],
    pictures: Sequence[Pictures],
    progress: Callable[[int, int], None] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
    workers: Workers = ALONE,
) -> list[Pictures]:
    """The pictures with every missing teacher image made. `progress(done, all)` after each.

    encode: a `prompt_encoder`, asked for what is not on the disk.

    Raises Cancelled; what was made is kept on the disk.
    """

    def encoded(prompt: str, pixels: Tensor) -> Tensor:
        if cancelled():
            raise Cancelled(UNFINISHED)
        return encode(prompt, pixels)

    missing = [i for i, picture in enumerate(pictures) if picture.target is None]
    wanted = [
        Wanted(samples[i].lora_name, samples[i].instruction, pictures[i].pixels, pictures[i].source, encoded)
        for i in missing
    ]
    if workers.count > 1:  # each makes a share and all then find them on the disk
        with suppress(Cancelled):  # this ends below, when the other processes have been met
            for done, _ in enumerate(maker.make(roles, workers.share(wanted), cancelled), 1):
                progress(done * workers.count, len(missing))
        workers.wait()
    complete = list(pictures)
    for done, (j, made) in enumerate(maker.make(roles, wanted, cancelled), 1):
        complete[missing[j]] = replace(complete[missing[j]], target=made.latent.cpu(), path=made.path)
        progress(done, len(missing))
    if any(picture.target is None for picture in complete):
        raise Cancelled(UNFINISHED)
    return complete


def draft_prompts(
    effects: Mapping[str, EffectEntry], asks: bool, seed: int, tags: str = "chosen"
) -> dict[str, EffectPrompts]:
    """Prompts like those of `choose_prompts` with these `tags`, without a model: what a catalogue refuses in
    them it refuses in those.

    asks: whether captions that the list has not are asked for; a placeholder then stands for them.

    Raises DataError when two effects have one tag; ValueError for a teacher prompt that makes no caption.
    """
    drawn = {name: candidate_tags(name, 1, seed)[0] for name in effects} | _fixed_tags(effects, tags)
    return _prompts(effects, drawn, _captions(effects, (lambda _: "...") if asks else None))


def _fixed_tags(effects: Mapping[str, EffectEntry], tags: str) -> dict[str, str]:
    """Tags that are not drawn: the list's own, and "" for all others where `tags` is "none"."""
    own = {name: effect.own_words[0] for name, effect in effects.items()}
    return {name: tag for name, tag in own.items() if tag or tags == "none"}


def _captions(effects: Mapping[str, EffectEntry], ask: Callable[[str], str] | None) -> dict[str, str]:
    """Of the list where it has words of its own, else by `ask(name)`, else from the teacher prompt."""
    captions = {}
    for name, effect in effects.items():
        tag, caption = effect.own_words
        if not tag and not caption:
            caption = ask(name) if ask else caption_template(effect.prompt)
        captions[name] = caption
    return captions


def _prompts(
    effects: Mapping[str, EffectEntry], tags: Mapping[str, str], captions: Mapping[str, str]
) -> dict[str, EffectPrompts]:
    """Without a tag the name stands for it. Raises DataError when two effects have one tag."""
    prompts: dict[str, EffectPrompts] = {}
    owners: dict[str, str] = {}
    for name, effect in effects.items():
        tag = tags[name] or name
        if tag in owners:
            raise DataError(
                f"effects {owners[tag]!r} and {name!r} have the same tag {tag!r}: begin each "
                "recaption_prompt_with_trigword with a word of its own"
            )
        owners[tag] = name
        whole = effect.recaption_prompt_with_trigword
        student = whole if whole.strip() else student_prompt(tags[name], captions[name])
        prompts[name] = EffectPrompts(tag, student)
    return prompts


def choose_prompts(
    host: Host,
    effects: Mapping[str, EffectEntry],
    samples: Sequence[EffectSample],
    pictures: Sequence[Pictures],
    endpoint: VlmEndpoint | None,
    remembered: Path,
    candidates: int,
    seed: int,
    tags: str = "chosen",
    progress: Callable[[int, int], None] = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, EffectPrompts], TagReport]:
    """AOP: a caption and a tag for every effect. `progress(done, all)` in prompts that tags are chosen by.

    A `recaption_prompt` of the list is taken as caption; a `recaption_prompt_with_trigword` is taken as the
    whole student prompt, its first word as tag. Captions of an endpoint are kept in the file `remembered`: a
    model answers differently each time, and a resumed student must see the prompts it has learnt. Tags are
    kept beside it, in tags.json. `tags` is "chosen", "random", or "none": the caption alone is then the
    student prompt, the name stands for the tag.

    Raises DataError when two effects have one tag; ValueError for fewer than 8 different sources where the
    text encoder sees them; CaptionError; Cancelled.
    """

    def asked(name: str) -> str:
        assert endpoint is not None
        if cancelled():
            raise Cancelled("cancelled while asking for captions; those that came are kept")
        own = [picture for sample, picture in zip(samples, pictures) if sample.lora_name == name]
        return _asked_caption(host, name, effects[name].prompt, own, endpoint, remembered, seed)

    def encode(prompts: list[str], image: Tensor | None) -> Tensor:
        if cancelled():
            raise Cancelled("cancelled while choosing tags")
        return torch.stack([text.float().mean(0).cpu() for text in host.encode_text(prompts, image)])

    def encode_alone(prompts: list[str]) -> Tensor:
        return encode(prompts, None)

    sources = {sample.source_image: picture.pixels for sample, picture in zip(samples, pictures)}
    some = [to_floats(pixels) for pixels in [*sources.values()][:IMAGES_AT_LEAST]]
    sees = host.text_sees_image
    captions = _captions(effects, asked if endpoint else None)
    count, fixed = candidates if tags == "chosen" else 1, _fixed_tags(effects, tags)

    def choose() -> TagReport:
        return choose_tags(
            embed_over_images(encode, some) if sees else encode_alone,
            captions,
            count,
            seed,
            batch=1 if sees else 128,  # an encoder that sees pictures is slow, and takes prompts one by one
            fixed=fixed,
            progress=progress,
        )

    seen = [hashlib.sha256(image.cpu().numpy().tobytes()).hexdigest() for image in some] if sees else []
    asked_for = [host.identity, fixed, count, seed, seen]
    report = choose_once(remembered.with_name(TAGS), asked_for, captions, choose)
    return _prompts(effects, report.tags, captions), report


def _asked_caption(
    host: Host,
    name: str,
    prompt: str,
    own: Sequence[Pictures],
    endpoint: VlmEndpoint,
    remembered: Path,
    seed: int,
) -> str:
    """The caption of one effect by the endpoint, asked once for each prompt and model."""
    try:
        known = json.loads(remembered.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    key = json.dumps([name, prompt, endpoint.model])
    if key not in known:
        shown = [(own[i].image, own[i].target) for i in pairs_shown(len(own), name, seed)]
        pairs = [
            (image, host.decode(target[None].to(host.device))[0])
            for image, target in shown
            if target is not None
        ]
        known[key] = caption_vlm(endpoint, pairs, prompt)
        write_text(remembered, json.dumps(known, indent=1))
    caption: str = known[key]
    return caption
