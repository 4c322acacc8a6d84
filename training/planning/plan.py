"""Before the start: does a run fit a card, with which settings is it fastest, how many hours will it take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

from ..config import OptimizerName
from ..run_config import Checkpointing
from .cards import BACKWARD, COPY, UNPACKING, UTILISATION, Card
from .evaluations import (
    Evaluations,
    Parts,
    cycle_evaluations,
    imitation_evaluations,
    last_evaluations,
    warm_evaluations,
)
from .footprint import (
    BF16,
    FLOAT32,
    GIB,
    Bytes,
    Job,
    Setting,
    Storage,
    base_bytes,
    device_bytes,
    disk_bytes,
    kept_bytes,
    ram_bytes,
    sharded,
)

HOUR = 3600
MUCH = 0.9
"""Of a run's hours, where it is worth saying that other batches would take less."""
ADVICE = "Lower rank or long_side, or take a larger card."


@dataclass(frozen=True)
class Hours:
    """What a run takes, by the operations it computes. Encoding, previews and thumbnails are not counted."""

    targets: float
    """Making the missing teacher images."""
    cycles: float
    cycle: float
    """Seconds of one of the last cycles, which match distributions if any do."""

    @property
    def all(self) -> float:
        """Together."""
        return self.targets + self.cycles


@dataclass(frozen=True)
class Plan:
    """A job under one setting, in a room of so many bytes."""

    job: Job
    setting: Setting
    room: int
    card: Card | None = None

    @property
    def peak(self) -> tuple[str, Bytes]:
        """The phase that holds most, and its parts."""
        phases = device_bytes(self.job, self.setting)
        return max(phases.items(), key=lambda phase: sum(phase[1].values()))

    @property
    def bytes(self) -> int:
        """The peak on the device."""
        return sum(self.peak[1].values())

    @property
    def missing(self) -> int:
        """Bytes that are too many; 0 where the plan fits."""
        return max(0, self.bytes - self.room)

    @property
    def hours(self) -> Hours | None:
        """None for what does not fit, or without a card."""
        return None if self.card is None or self.missing else hours(self.job, self.setting, self.card)


def plan(job: Job, card: Card) -> Plan:
    """The fastest setting that fits the card; where none does, the smallest."""
    return choose(Plan(job, setting, card.room, card) for setting in settings(job))


def choose(plans: Iterator[Plan]) -> Plan:
    """The fastest that fits, of equally fast ones the first; where none fits, the smallest. What the job's
    own optimizer can do is not done with less precise moments."""
    every = list(plans)
    fitting = [one for one in every if not one.missing]
    if not fitting:
        return min(every, key=lambda one: one.bytes)

    def cost(one: Plan) -> tuple[bool, float]:
        other = one.setting.optimizer != one.job.config.optimizer
        return other, one.hours.all if one.hours else 0.0

    return min(fitting, key=cost)


def settings(job: Job) -> Iterator[Setting]:
    """All that may be chosen, what the job asks for first."""
    config = job.config
    optimizers = get_args(OptimizerName) if config.optimizer == "adamw" else (config.optimizer,)
    most, own = replace(config, micro_batch=config.batch), config.micro_batch_of(job.devices)
    micro = [n for n in range(1, most.micro_batch_of(job.devices) + 1) if config.batch % n == 0]
    split = [] if job.devices == 1 or BF16 not in job.storages else [sharded(job.devices)]
    targets = {job.targets.batch, 8, 4, 2, 1}
    batches = _nearest(own, micro), _nearest(job.targets.batch, targets)
    for chosen in product([*job.storages, *split], optimizers, *batches, job.checkpointing):
        yield Setting(*chosen)


def _nearest(own: int, others: Iterable[int]) -> list[int]:
    """A batch as it is asked for, then smaller ones, then larger."""
    return sorted(others, key=lambda n: (n > own, -n if n <= own else n))


# -- time ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Floating-point operations of one pass of one sample through the model."""

    adapter: float
    """Forward under student or fake score."""
    teacher: float
    """Forward under a teacher or, in the general stream, the base."""
    target: float
    """Forward under a teacher."""
    recomputed: float
    """What checkpointing computes again before a backward."""
    backward: float
    """Of student or fake score."""
    scores: float
    """Attention's, which a backward computes again."""


def passes(job: Job, checkpointing: Checkpointing) -> Passes:
    """The passes of a job, its adapters included."""
    model, tokens = job.architecture.operations(job.tokens), job.tokens
    adapter = job.architecture.adapter_operations(job.adapted, job.config.rank, tokens)
    teacher = job.architecture.adapter_operations(job.taught, job.teacher_rank, tokens)
    kept = {"none": model.forward + adapter, "selective": model.attention, "full": 0.0}[checkpointing]
    return Passes(
        model.forward + adapter,
        model.forward + job.p_effect * teacher,
        model.forward + teacher,
        model.forward + adapter - kept,
        model.backward + 2 * adapter,
        model.scores,
    )


def hours(job: Job, setting: Setting, card: Card, utilisation: float = UTILISATION) -> Hours:
    """What the job takes on a card, with pictures of one size.

    A pass over a batch takes as long as its operations at `utilisation` of the card's peak and the unpacking
    of weights, or as reading the weights, or as fetching those that are not there, or as launching its
    kernels, whichever is longest.
    """
    reading, more = _reading(job, setting.storage, card), _unpacking(job, setting.storage, card)
    launching = job.architecture.num_layers * card.launch
    forward = launching * (UNPACKING if setting.storage.unpacked else 1)

    def seconds(operations: float, batch: float, launching: float = forward) -> float:
        """Of one sample's share of a pass over `batch` samples."""
        computing = operations / (utilisation * card.operations)
        return max(computing + more / batch, reading / batch, launching / batch) if operations else 0.0

    each, batch = passes(job, setting.checkpointing), setting.micro_batch

    def part(count: Evaluations, samples: float) -> float:
        own, teachers = seconds(each.adapter, samples), seconds(each.teacher, samples)
        backward = seconds(each.backward + each.scores, samples, BACKWARD * launching)
        gradient = own + seconds(each.recomputed, samples) + backward
        return count.adapter * own + count.teacher * teachers + count.gradient * gradient

    def cycle(parts: Parts) -> float:
        return job.share(batch) * sum(part(*one) for one in parts) + kept_bytes(job, setting) / COPY

    c = job.config
    adding = _adding_up(job, card)
    full = cycle(cycle_evaluations(c, job.p_effect, batch)) + (1 + c.fake_ratio) * adding
    warm = cycle(warm_evaluations(job.p_effect, batch)) + adding
    imitating = cycle(imitation_evaluations(c, job.p_effect, job.few_step > 0, batch, job.gains)) + adding
    return Hours(
        target_evaluations(job) / job.devices * seconds(each.target, setting.target_batch) / HOUR,
        (c.warm_cycles * warm + c.imitation_cycles * imitating + c.matching_cycles * full) / HOUR,
        full if c.matching_cycles else imitating if c.imitation_cycles else warm,
    )


def target_evaluations(job: Job) -> int:
    """Evaluations of all teacher images to make: guidance takes two a step."""
    return job.images * job.targets.steps * (2 if job.targets.guidance else 1)


def model_operations(job: Job) -> float:
    """FLOP of one of the last cycles without recomputation: what model utilisation is measured by."""
    each, count = passes(job, "none"), _last(job)
    gradient = count.gradient * (each.adapter + each.backward)
    return job.config.batch * (count.adapter * each.adapter + count.teacher * each.teacher + gradient)


def _last(job: Job) -> Evaluations:
    return last_evaluations(job.config, job.p_effect, job.few_step > 0, job.gains)


def _reading(job: Job, storage: Storage, card: Card) -> float:
    """Seconds in which all weights are read once by the matrix products, or what is not on the device comes
    over the link, ahead of its use; both go on beside the computation."""
    everything = base_bytes(job.architecture, replace(storage, blocks=None, parts=1))
    absent = everything - base_bytes(job.architecture, storage)
    return max(job.architecture.weights * storage.item / card.bandwidth, absent / card.link)


def _adding_up(job: Job, card: Card) -> float:
    """Seconds in which the devices' gradients of one adapter go round in a ring."""
    return 2 * (1 - 1 / job.devices) * FLOAT32 * job.adapter / card.link


def _unpacking(job: Job, storage: Storage, card: Card) -> float:
    """Seconds a pass in which nothing is computed: packed weights are read and written unpacked."""
    numbers = job.architecture.weights if storage.unpacked else 0
    return numbers * (storage.weight + storage.item) / card.bandwidth


# -- in words ------------------------------------------------------------------------------------------------


def words(plan: Plan) -> str:
    """A table for people."""
    job, setting, c = plan.job, plan.setting, plan.job.config
    count = _last(job).equivalents
    lines = [
        f"{job.effects} effects, {job.images} teacher images to make, {job.side} pixels, rank {c.rank}, "
        f"{c.cycles} cycles of {c.batch} samples of {count:.4g} forward-equivalents"
    ]
    if plan.card is not None:
        peak = plan.card.operations / 1e12
        cards = plan.card.name if job.devices == 1 else f"{job.devices} of {plan.card.name}"
        lines.append(f"on {cards}, {UTILISATION:.0%} of its {peak:.0f} TFLOP/s")
    lines.append(", ".join(f"{name} = {value}" for name, value in chosen(setting).items()))
    phase, parts = plan.peak
    lines += [_line(name, size) for name, size in parts.items() if size]
    lines.append(f"{_line(f'at the peak, {phase}', plan.bytes)} of {plan.room / GIB:.2f}")
    lines += [_line(f"in RAM: {name}", size) for name, size in ram_bytes(job, setting).items() if size]
    lines += [_line(f"on the disk: {name}", size) for name, size in disk_bytes(job, setting).items()]
    took = plan.hours
    if took is not None:
        lines.append(f"{'teacher images':<32}{took.targets:8.2f} h   {target_evaluations(job)} evaluations")
        lines.append(f"{'cycles':<32}{took.cycles:8.2f} h   {took.cycle:.1f} s each")
        lines.append(f"{'together':<32}{took.all:8.2f} h")
    return "\n".join(lines)


def verdict(plan: Plan) -> str:
    """What is missing where even the best plan does not fit; else nothing."""
    if not plan.missing:
        return ""
    return f"Nothing that can be set fits: {plan.missing / GIB:.2f} GiB are missing. {ADVICE}"


def remedy(plan: Plan) -> str:
    """Which settings would make a plan fit, by their names; nothing for one that fits."""
    if not plan.missing:
        return ""
    best = choose(replace(plan, setting=setting) for setting in settings(plan.job))
    if best.missing:
        return verdict(best)
    return f"{plan.missing / GIB:.2f} GiB are missing; this would fit: {_changes(plan, best)}"


def shortage(plan: Plan, ram: int, disk: int, on_cpu: bool = False) -> str:
    """What a machine with so many bytes of RAM, and free on the disk, lacks; nothing where it has all."""
    in_ram, on_disk = (sum(parts(plan.job, plan.setting).values()) for parts in (ram_bytes, disk_bytes))
    needs = {"RAM": (in_ram + plan.bytes * on_cpu, ram), "the disk": (on_disk, disk)}
    lacking = []
    for name, (size, there) in needs.items():
        if size > there:
            lacking.append(f"{size / GIB:.1f} GiB of {name} where there are {there / GIB:.1f}")
    return f"The run will need {' and '.join(lacking)}: fewer pictures, or a lower rank." if lacking else ""


def faster(plan: Plan) -> str:
    """Which batches would make a run that fits much shorter; nothing where none would."""
    as_it_lies = replace(plan.job, storages=(plan.setting.storage,))
    best = choose(replace(plan, setting=setting) for setting in settings(as_it_lies))
    if plan.hours is None or best.hours is None or best.hours.all > MUCH * plan.hours.all:
        return ""
    return f"faster, with pictures of one size: {_changes(plan, best)}: {best.hours.all:.2f} h together"


def _changes(now: Plan, then: Plan) -> str:
    known = chosen(now.setting)
    return ", ".join(
        f"{name} = {value}" for name, value in chosen(then.setting).items() if value != known[name]
    )


def chosen(setting: Setting) -> dict[str, str | int]:
    """A setting by the names that users know."""
    return {
        "base": setting.storage.name,
        "optimizer": setting.optimizer,
        "micro_batch": setting.micro_batch,
        "targets.batch": setting.target_batch,
        "checkpointing": setting.checkpointing,
    }


def _line(name: str, size: int) -> str:
    return f"{name:<32}{size / GIB:8.2f} GiB"


def to_json(plan: Plan) -> dict[str, Any]:
    """The same for programs: bytes, seconds, hours."""
    job, setting, took = plan.job, plan.setting, plan.hours
    phase, parts = plan.peak
    return {
        "gpu": None if plan.card is None else plan.card.name,
        "gpus": job.devices,
        "fits": not plan.missing,
        "missing_bytes": plan.missing,
        "room_bytes": plan.room,
        "peak_bytes": plan.bytes,
        "phase": phase,
        "parts_bytes": parts,
        "phases_bytes": {name: sum(own.values()) for name, own in device_bytes(job, setting).items()},
        "setting": chosen(setting),
        "forward_equivalents": _last(job).equivalents,
        "hours": took and {"targets": took.targets, "cycles": took.cycles, "all": took.all},
        "seconds_per_cycle": took and took.cycle,
        "flop_per_cycle": model_operations(job),
        "utilisation": UTILISATION,
        "ram_bytes": ram_bytes(job, setting),
        "disk_bytes": disk_bytes(job, setting),
    }
