"""A run's configuration file: TOML in, a checked `Run` out."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..collection.jsonl import (
    EffectEntry,
    EffectSample,
    GeneralSample,
    read_effect_data,
    read_effects,
    read_general_data,
)
from ..collection.lora_weights import LoraWeights
from ..collection.thumbnails import Pair
from .captions import CaptionError, VlmEndpoint, pairs_shown
from .config import ConfigError, Distillation, checked, checked_values, distillation, nearest
from .fp8 import AS_LOADED, PACKED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

Checkpointing = Literal["full", "selective", "none"]
"""What the base's blocks keep to a backward: their inputs, these and what attention made of them, or all. The
less is kept, the more is computed twice."""
CHECKPOINTING: tuple[Checkpointing, ...] = get_args(Checkpointing)
BaseDtype = Literal["bf16", "fp8"]
Tags = Literal["chosen", "random", "none"]
COLLECTION = "collection.safetensors"


@dataclass(frozen=True)
class TeacherSampling:
    """How teacher images are made."""

    steps: int = 40
    guidance: float = 3.0
    batch: int = 8


@dataclass(frozen=True)
class Lists:
    """What a run learns from, see `collection.jsonl`."""

    effects: Mapping[str, EffectEntry]
    """The teachers by name."""
    samples: Sequence[EffectSample]
    """The sources of each effect."""
    general: Sequence[GeneralSample] = ()
    """The general stream's edits; without them every sample is an effect's."""

    def only(self, effects: Iterable[str], each: int) -> Lists:
        """These effects alone, with the first `each` samples of every one; the general stream as it is."""
        own = {name: [one for one in self.samples if one.lora_name == name][:each] for name in effects}
        samples = [sample for some in own.values() for sample in some]
        return Lists({name: self.effects[name] for name in own}, samples, self.general)

    def pictures_hash(self) -> dict[str, str]:
        """sha256 of the pictures of each effect, as their files are, and under "" of the general edits, with
        their words."""
        known = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._files()}
        general = [[known[one.source_image], one.instruction] for one in self.general]
        seen: dict[str, list[object]] = {"": [*general]}
        for one in self.samples:
            made = one.base_pred_image and known[one.base_pred_image]
            seen.setdefault(one.lora_name, []).append([known[one.source_image], made])
        return {name: hashlib.sha256(json.dumps(some).encode()).hexdigest() for name, some in seen.items()}

    def teacher_prompts(self) -> dict[str, str]:
        """What each teacher is asked for; several instructions as a hash of them, in their order."""
        asked: dict[str, list[str]] = {name: [] for name in self.effects}
        for one in self.samples:
            asked[one.lora_name].append(one.instruction)
        return {
            name: some[0] if len(set(some)) == 1 else hashlib.sha256(json.dumps(some).encode()).hexdigest()
            for name, some in asked.items()
        }

    def _files(self) -> set[Path]:
        made = {one.base_pred_image for one in self.samples if one.base_pred_image is not None}
        return made | {one.source_image for one in self.samples} | {one.source_image for one in self.general}


@dataclass(frozen=True)
class Run:
    """Everything that decides what a run does, but the model."""

    output: Path
    lists: Lists
    base: str = "pocket"
    """"pocket", a folder with Qwen-Image-Edit-2509 or -2511 as published for diffusers, or one with pocket
    weights."""
    base_dtype: BaseDtype = AS_LOADED
    """"fp8" packs the base's blocks into 8 bits, half the memory; "bf16" leaves the weights as they are."""
    offload: bool | int = False
    """Blocks of the base that wait in host memory and are on the device only while they run; True: all."""
    few_step: Path | None = None
    """A LoRA of few-step sampling alone (a Lightning LoRA): the student is sampled on top of it and learns
    what is missing, and the collection holds both."""
    extend: Path | None = None
    """A finished collection that the student starts from, see `extend`."""
    held_few_step: str = ""
    """Name of the few-step LoRA in the collection that is extended: the new file names it too."""
    below: LoraWeights | None = None
    """That LoRA, taken out of the collection: it stands below the student as one of `few_step` does. Where it
    is what learns (`few_step_alone`), the rest of the collection."""
    gains: Mapping[str, float] = field(default_factory=dict)
    """Of the collection that is extended, by effect (:mod:`.gains`)."""
    spent: Mapping[str, float] = field(default_factory=lambda: {"cycles": 0, "seconds": 0})
    """What the collection that is extended has taken already: the new file names the sums."""
    shard: bool = False
    """Split the blocks of the base over the processes that torchrun starts, instead of one base in each."""
    checkpointing: Checkpointing = "full"
    """Of the full-size base; the pocket keeps everything."""
    long_side: int = 1024
    """Pixels of the longer side of every picture; the pocket knows 128 alone."""
    distill: Distillation = field(default_factory=Distillation)
    targets: TeacherSampling = field(default_factory=TeacherSampling)
    candidates: int = 64
    """Random tags to choose from for each effect."""
    tags: Tags = "chosen"
    """"chosen" for small similarity; "random" as in the paper, or "none" (captions alone), to measure AOP."""
    captions: VlmEndpoint | None = None
    preset: str = "default"
    titles: Mapping[str, str] = field(default_factory=dict)
    """Titles by effect name; by default the name in words."""
    thumbnails: bool = False
    """Whether the collection file gets a picture of each effect: a source of the user, and the result."""
    kept: Mapping[str, Pair] = field(default_factory=dict)
    """Pictures that the file has in any case, by the catalogue's name: a collection that is extended has
    them."""

    @property
    def samples_with_images(self) -> list[int]:
        """Which samples need their teacher's image: all to learn from, or some of an effect whose caption the
        endpoint is asked for."""
        samples = self.lists.samples
        if self.distill.learns_images:
            return list(range(len(samples)))
        asked = (
            []
            if self.captions is None
            else [name for name, effect in self.lists.effects.items() if not any(effect.own_words)]
        )
        found = []
        for name in asked:
            own = [i for i, sample in enumerate(samples) if sample.lora_name == name]
            found += [own[k] for k in pairs_shown(len(own), name, self.distill.seed)]
        return found

    def require_base(self) -> None:
        """Raises ConfigError if there is no base in its folder (yet)."""
        files = ("model_index.json", "transformer.safetensors")
        if self.base != "pocket" and not any((Path(self.base) / name).is_file() for name in files):
            raise ConfigError(
                f"base = {self.base!r}: the folder holds neither Qwen-Image-Edit-2509 or -2511 as published "
                "for diffusers (model_index.json) nor a pocket base (transformer.safetensors); name one"
            )

    def require_few_steps(self) -> None:
        """Raises ConfigError if nothing would have taught the collection the few steps it is sampled in."""
        if self.distill.few_step_alone and self.below is None:
            raise ConfigError(
                "few_step_alone trains the few-step LoRA that a collection holds: extend one that was made "
                "on top of such a LoRA (few_step)"
            )
        imitates = self.distill.imitation_cycles and not self.distill.matching_cycles
        if imitates and self.few_step is None and self.below is None:
            raise ConfigError(
                "imitation alone teaches no few steps, and unlearns those that a collection has by itself: "
                f"name a few_step LoRA, or let cycles = {self.distill.cycles} be more than warm_cycles and "
                f"imitation_cycles = {self.distill.imitation_cycles}"
            )

    @property
    def checkpoint(self) -> Path:
        """Where the state of the run is kept."""
        return self.output / "state.safetensors"

    @property
    def collection(self) -> Path:
        """The file to share."""
        return self.output / COLLECTION


_PATHS = ("output", "effects", "data", "general", "root", "few_step", "extend")
_TABLES = ("distill", "targets", "captions", "titles")
_PLAIN = ("base_dtype", "shard", "checkpointing", "long_side", "candidates", "tags", "thumbnails")
"""Keys whose values are what `Run` has."""
_KNOWN = (*_PATHS, *_TABLES, *_PLAIN, "base", "offload", "preset")


def read_run(path: Path, cycles: int | None = None) -> Run:
    """Read and check a TOML file and the lists it names, by paths from its folder; `cycles` overrides
    `distill.cycles`.

    Raises ConfigError naming the file, the key and the nearest valid one; CollectionError naming a list's
    line.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    try:
        return _run(values, path.resolve().parent, cycles)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_lists(effects: Path, data: Path, general: Path | None = None, root: Path | None = None) -> Lists:
    """The paper's three lists, by paths from `root`, else from the folder of each. Raises CollectionError
    naming file, line and field.
    """
    teachers = {entry.lora_name: entry for entry in read_effects(effects, root)}
    samples = read_effect_data(data, teachers, root)
    return Lists(teachers, samples, read_general_data(general, root) if general else ())


def _run(values: dict[str, Any], folder: Path, cycles: int | None) -> Run:
    paths: dict[str, Path] = {}
    for key, value in values.items():
        if key not in _KNOWN:
            raise ConfigError(f"unknown key {key}{nearest(key, _KNOWN)}")
        if key in _TABLES and not isinstance(value, dict):
            raise ConfigError(f"{key} must be a table: [{key}]")
        if key in (*_PATHS, "base", "preset") and (not isinstance(value, str) or not value):
            raise ConfigError(f"{key} = {value!r} must be a text")
        if key in _PATHS:
            paths[key] = folder / value
    for key in ("output", "effects", "data"):
        if key not in paths:
            raise ConfigError(f'the key {key} is missing; add {key} = "..." at the top of the file')
    plain = checked_values(Run, {key: values[key] for key in _PLAIN if key in values})
    offload = values.get("offload", Run.offload)
    if not isinstance(offload, int) or (offload is not False and offload < 1):
        raise ConfigError(f"offload = {offload!r} must be true, false or a number of blocks, at least 1")
    if plain.get("shard") and (offload or plain.get("base_dtype") == PACKED):
        raise ConfigError("shard = true splits the base as it was loaded: leave out offload and base_dtype")
    titles = values.get("titles", {})
    for name, title in titles.items():
        if not isinstance(title, str):
            raise ConfigError(f"titles.{name} = {title!r} must be a text")
    output, extend = paths["output"], paths.get("extend")
    if extend is not None and extend.resolve() == (output / COLLECTION).resolve():
        raise ConfigError(f"extend = {values['extend']!r} is what the run writes: give it another output")
    preset, base = values.get("preset", "default"), values.get("base", "pocket")
    distill = values.get("distill", {})
    return Run(
        output=output,
        lists=read_lists(paths["effects"], paths["data"], paths.get("general"), paths.get("root")),
        base=base if base == "pocket" else str(folder / base),
        offload=offload,
        few_step=paths.get("few_step"),
        extend=extend,
        distill=distillation(distill if cycles is None else {**distill, "cycles": cycles}, preset),
        targets=checked(TeacherSampling, values.get("targets", {}), "targets."),
        captions=_endpoint(values["captions"]) if "captions" in values else None,
        preset=preset,
        titles=titles,
        **plain,
    )


def _endpoint(values: dict[str, Any]) -> VlmEndpoint:
    known = ("url", "model", "key_variable")
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown key captions.{key}{nearest(key, known)}")
        if not isinstance(value, str):
            raise ConfigError(f"captions.{key} = {value!r} must be a text")
    for key in ("url", "model"):
        if key not in values:
            raise ConfigError(f"the key captions.{key} is missing")
    # The key itself never stands in a file that people share: the file names the variable that holds it.
    variable = values.get("key_variable")
    if variable is not None and variable not in os.environ:
        raise ConfigError(
            f"captions.key_variable = {variable!r}: the environment has no such variable; set it"
        )
    endpoint = VlmEndpoint(values["url"], values["model"], os.environ[variable].strip() if variable else "")
    try:
        endpoint.address()
    except CaptionError as error:
        raise ConfigError(f"captions.url: {error}") from error
    return endpoint
