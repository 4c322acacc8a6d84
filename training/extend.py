"""Going on from a finished collection: more effects are added, and nothing that people know it by changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..collection.catalogue import Catalogue, slug
from ..collection.errors import LoraFormatError
from ..collection.file import load_collection
from ..collection.lora_weights import LoraWeights, Shapes
from ..collection.thumbnails import pair_of
from .config import LARGEST_GAIN, ConfigError
from .lora import taken_apart
from .run_config import Run

_MOST = 1e12
"""Cycles or seconds that a file may say it took."""
_CHANGED = "the file was changed: get it again from whoever made it"


def read_extended(run: Run, shapes: Shapes) -> tuple[Run, LoraWeights | None]:
    """`run` as `extended`, and the weights that its student starts from; None where it extends nothing.

    Raises:
        ConfigError: as :func:`extended`.
        CollectionError, LoraFormatError: as `load_collection`.
    """
    if run.extend is None:
        return run, None
    weights, catalogue = load_collection(run.extend, shapes)
    return extended(run, run.extend.name, weights, catalogue)


def extended(run: Run, name: str, weights: LoraWeights, catalogue: Catalogue) -> tuple[Run, LoraWeights]:
    """`run` going on from the collection `name`, and the weights that its student starts from: known effects
    keep tag, prompt, title, category and picture, and the student its rank.

    A few-step LoRA that is in it is taken out and stands below the student again, or is the student where it
    learns alone. In a file that does not say where it is (of an earlier version) it is trained as a part of
    the student; the new file names it.

    Raises:
        ConfigError: an effect that has no teacher here, a second few-step LoRA, other times than the first's,
            or a rank of it, or gains, that cannot be; a new effect where the few-step LoRA learns alone.
    """
    teachers = {slug(teacher): teacher for teacher in run.lists.effects}
    for effect in catalogue.effects:
        if effect.name not in teachers:
            raise ConfigError(
                f"{name} holds the effect {effect.name!r}, which has no teacher here and would be "
                "forgotten; add its LoRA to the teachers"
            )
    held = str(catalogue.training.get("few_step", ""))
    if held and run.few_step is not None:
        raise ConfigError(f"{name} holds few-step sampling already ({held}): extend it without few_step")
    student, below = _parts(name, weights, catalogue) if held else (weights, None)
    if below is not None and not _same_times(run.distill.objective.sigmas, catalogue.sigmas):
        raise ConfigError(
            f"{name} is sampled in {len(catalogue.sigmas) - 1} steps, the first to "
            f"{catalogue.sigmas[1]:.4g}: set objective.steps, ts_steps and shift as it was made with"
        )
    known = {teachers[effect.name]: effect for effect in catalogue.effects}
    if run.distill.few_step_alone:
        student, below = _learning_alone(run, name, catalogue, below), student
    asked = {
        teacher: replace(
            entry := run.lists.effects[teacher],
            recaption_prompt_with_trigword=effect.prompt,
            tag=effect.tag,
            data_type=entry.data_type or effect.category,
        )
        for teacher, effect in known.items()
    }
    rank = max(map(len, student.down.values()))
    going_on = replace(
        run,
        lists=replace(run.lists, effects={**run.lists.effects, **asked}),
        titles={**{teacher: effect.title for teacher, effect in known.items()}, **run.titles},
        distill=replace(run.distill, rank=rank, alpha=float(rank)),
        held_few_step=held,
        below=below,
        gains=_gains(name, catalogue, teachers),
        spent={key: _spent(catalogue, key) for key in run.spent},
        kept={
            effect.name: pair_of(effect.thumbnail, f"{name}: the thumbnail of effect {effect.name!r}")
            for effect in catalogue.effects
            if effect.thumbnail
        },
    )
    return going_on, student


def _learning_alone(run: Run, name: str, catalogue: Catalogue, few_step: LoraWeights | None) -> LoraWeights:
    """The few-step LoRA, which is to learn alone."""
    if few_step is None:
        raise ConfigError(
            f"few_step_alone: {name} does not say where in it a few-step LoRA is; it has to be made on top "
            "of one (few_step), by this version"
        )
    known = {effect.name for effect in catalogue.effects}
    if new := {slug(teacher) for teacher in run.lists.effects} - known:
        raise ConfigError(
            f"few_step_alone learns no effects, and {name} lacks {min(new)!r}: add it first, by a run of its "
            "own"
        )
    return few_step


def _same_times(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and max(abs(a - b) for a, b in zip(first, second)) < 1e-3


def _gains(name: str, catalogue: Catalogue, teachers: Mapping[str, str]) -> dict[str, float]:
    """By teacher; empty where the collection was made without."""
    gains = catalogue.training.get("gains", {})
    try:
        found = {teachers[effect]: float(gain) for effect, gain in gains.items() if effect in teachers}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name} names no gains of effects: {error}; {_CHANGED}") from error
    for effect, gain in found.items():
        if not 1 <= gain <= LARGEST_GAIN:
            raise ConfigError(f"{name}: {effect} has a gain of {gain:g}, not 1 to {LARGEST_GAIN}; {_CHANGED}")
    return found


def _spent(catalogue: Catalogue, key: str) -> float:
    """0 for what is no number: it is only told again."""
    value = catalogue.training.get(key)
    return value if isinstance(value, int | float) and 0 <= value < _MOST else 0


def _parts(name: str, weights: LoraWeights, catalogue: Catalogue) -> tuple[LoraWeights, LoraWeights | None]:
    """The student and the few-step LoRA that it stands on; None where the file does not say that it does."""
    rank = catalogue.training.get("few_step_rank")
    if rank is None:
        return weights, None
    try:
        return taken_apart(weights, rank)
    except (LoraFormatError, TypeError) as error:
        raise ConfigError(
            f"{name} says that its few-step LoRA has rank {rank!r}, but {error}; {_CHANGED}"
        ) from error
