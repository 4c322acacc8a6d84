"""What a run that goes on from a saved state may change, and how errors call what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from .checkpoint import CheckpointError

MAY_DIFFER = (
    *("cycles", "save_every", "micro_batch", "bank_ram", "start_share"),
    *("lr", "fake_lr", "lr_schedule", "lr_warmup"),
)
"""Settings that a resumed run may change. Learning rates are the user's to lower as the run goes; the others
do not change what a cycle computes (`micro_batch`: up to rounding; `cycles`: but for a rate that falls)."""

LENGTHS = ("warm_cycles", "imitation_cycles")
"""They may change as far as the cycles that were run would have been the same, but for when gains begin."""

ONCE = {
    "anchor": "image",
    "fake_base": "base",
    "half_share": 0.0,
    "imitation_cycles": 0,
    "on_policy": 0.0,
    "imitation_gain": 1.0,
    "few_step_alone": False,
}
"""What a run did before there was a setting for it: its states do not name these."""


def difference(ours: Mapping[str, Any], theirs: Any, cycle: int = 0) -> str | None:
    """The first setting of a state of `cycle` that a run with `ours` cannot go on from, in words; None where
    there is none."""
    if not isinstance(theirs, Mapping):
        return "no settings at all"
    for key, value in ours.items():
        found = theirs.get(key, ONCE.get(key))
        if key in MAY_DIFFER or found == value or (key == "sizes" and found is None):  # of an earlier version
            continue
        if key in LENGTHS and _kinds(ours, cycle) == _kinds(theirs, cycle):
            continue
        if not isinstance(value, Mapping):
            return f"{key} = {found!r} where this run has {value!r}"
        if (inner := difference(value, found)) is not None:
            return f"{key}.{inner}"
    return None


def has_learnt(state: Mapping[str, Any]) -> bool:
    """Whether a run that goes on has anything to go on from; what is no state is left to be refused."""
    return bool(state.get("cycle", True))


def check_settings(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the first difference, where the state `theirs` of the file `path` is of
    another configuration or other lessons than the state `ours`."""
    for part, where in (("config", ""), ("lessons", "lessons.")):
        if (wrong := difference(ours[part], theirs.get(part), theirs.get("cycle", 0))) is not None:
            raise CheckpointError(
                f"{path}: made with {where}{wrong}; restore that, or delete the state to start again"
            )


def check_origin(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises CheckpointError, naming the file `path`, where a student was trained on something else: another
    base, few-step LoRA, collection to extend or teacher, or other prompts or pictures. Files of earlier
    versions do not say all of it, nor does a run before it has chosen its prompts; a lost file says nothing.
    """
    if not theirs:
        return

    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"{path}: {what}; restore that, or delete the state to start again")

    if theirs.get("base", ours["base"]) != ours["base"]:
        refuse("the run was trained on another base, or with another base_dtype")
    if theirs.get("few_step") != ours["few_step"]:
        refuse("the run was trained with another few_step LoRA, or without one")
    if theirs.get("extend", ours["extend"]) != ours["extend"]:
        refuse("the run was begun from another collection to extend, or from none")
    if theirs.get("size", ours["size"]) != ours["size"]:
        refuse("the run was trained on pictures of {} x {} pixels".format(*reversed(theirs["size"])))
    if theirs.get("targets", ours["targets"]) != ours["targets"]:
        refuse("the run's teachers were sampled in {} steps with guidance {}".format(*theirs["targets"]))
    for name, found in theirs.get("pictures", {}).items():
        if ours["pictures"].get(name, found) != found:
            of = f"of effect {name!r}" if name else "or instructions of the general stream"
            refuse(f"the pictures {of} are not those that the run was trained on")
    for name, found in theirs.get("teachers", {}).items():
        if ours["teachers"].get(name, found) != found:
            refuse(f"the file of teacher {name!r} is not the one that the run was trained with")
    for kind, done in (("prompts", "trained as"), ("teacher_prompts", "taught with the prompt")):
        for name, found in theirs.get(kind, {}).items():
            own = ours.get(kind, {}).get(name, found)
            if own != found:
                refuse(f"effect {name!r} was {done} {found!r}, this run has {own!r}")


def _kinds(config: Mapping[str, Any], cycle: int) -> tuple[int, int]:
    """How many of the first cycles were warm ones, and how many these or imitation."""
    warm = config.get("warm_cycles", 0)
    return min(cycle, warm), min(cycle, warm + config.get("imitation_cycles", 0))
