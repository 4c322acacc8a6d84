"""Every number of a distillation in one place.

Defaults are the paper's, except that the fake score learns from the student update's own rollouts and that
TA-FM starts from the teachers' paths; presets say where they differ.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .flow import few_step_sigmas, fewer_sigmas, seeded_sigmas
from .lora import PAPER_TARGETS

Anchor = Literal["path", "image"]
FakeBase = Literal["teacher", "base"]
OptimizerName = Literal["adamw", "adamw8bit"]
LrSchedule = Literal["constant", "cosine", "hold"]

Checked = TypeVar("Checked")


class ConfigError(ValueError):
    """A configuration has an unknown key or a value out of range; the message names both and the remedy."""


@dataclass(frozen=True)
class Objective:
    """The loss (paper section 3.3). A weight of 0 switches a term off and costs nothing."""

    bs_weight: float = 1.0
    """L_DMD_BS: distribution matching on the student's own few-step samples."""
    ts_weight: float = 1.0
    """L_DMD_TS: distribution matching on one student step from a noised teacher image."""
    fm_weight: float = 1.0
    """L_TA-FM: velocity regression on the teacher's image, above the time of the BS term or along its path
    (`anchor`)."""
    guidance: float = 4.0
    """Classifier-free guidance of the real score, cond + guidance (cond - uncond)."""
    floor: float = 0.0
    """Smallest normaliser of the DMD gradient."""
    steps: int = 8
    """Evaluations of the few-step sampler."""
    shift: float = 3.0
    """Shift of the schedule and of every drawn time."""
    ts_steps: int = 5
    """The teacher's image is noised to one of the last `ts_steps` steps of the schedule."""
    ts_low: float = 0.5
    """Lowest time, before the shift, at which the TS term is scored."""
    double_shift: bool = True
    """Shift the time of TA-FM twice, as released; else once."""
    anchor: Anchor = "path"
    """Where TA-FM starts from: "image", the teacher's image with fresh noise, is the paper; "path", where the
    teacher itself passed on its way to the image, at the steps of the schedule. An image whose path is not
    known, because the user made it, is noised in either case."""

    fake_base: FakeBase = "base"
    """What the fake score's LoRA is added to: "base" is the paper; "teacher", each sample's own teacher with
    its prompt, so that the LoRA need not learn the effects once more but only how the student differs."""
    half_share: float = 0.0
    """Share of the updates whose rollouts take half as many steps. Beyond the paper."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The sampler's sigmas, steps + 1 of them."""
        return few_step_sigmas(self.steps, self.shift)

    @property
    def half_sigmas(self) -> tuple[float, ...]:
        """Those of the sampler in half as many steps, which a collection has to bear too."""
        return fewer_sigmas(self.sigmas, (self.steps + 1) // 2)

    @property
    def path_sigmas(self) -> tuple[float, ...]:
        """Where states of the way to each teacher image are needed."""
        return self.sigmas[:-1] if self.fm_weight and self.anchor == "path" else ()

    @property
    def matches(self) -> bool:
        """Whether any term matches distributions, which takes a fake score."""
        return bool(self.bs_weight or self.ts_weight)

    @property
    def ts_sigmas(self) -> tuple[float, ...]:
        """Where the TS term noises the teacher's image to."""
        return seeded_sigmas(self.sigmas, self.ts_steps)


@dataclass(frozen=True)
class Distillation:
    """A whole run. One cycle is one student update and `fake_ratio` updates of the fake score."""

    objective: Objective = Objective()
    cycles: int = 5000
    fake_ratio: int = 5
    share_rollouts: bool = True
    """Train the fake score on the samples of the cycle's student update, which costs 29 forward-equivalents a
    cycle and sample (mean of both streams); else on fresh ones, which costs 51.5."""
    p_effect: float = 0.5
    """PDSR: probability of the effect stream, drawn for each sample."""
    batch: int = 8
    """Samples of one update."""
    micro_batch: int = 1
    """Samples of one forward, at most; the rest is accumulated."""
    rank: int = 128
    alpha: float = 128.0
    """The adapter is added alpha / rank times. Where only a rank is set this is the rank."""
    targets: tuple[str, ...] = PAPER_TARGETS
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-4
    fake_lr: float = 1e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.01
    clip: float = 10.0
    """Largest gradient norm of an update."""
    lr_schedule: LrSchedule = "constant"
    """Over all `cycles`, the warm ones too. "hold" falls, linearly to 0, over the last fifth only: a run
    stopped before it falls can go on to more cycles as if they had been meant from the start."""
    lr_warmup: int = 0
    """Cycles over which learning rates rise from 0."""
    ema: float = 0.0
    """Decay of the student's moving average, which is then what is saved; 0 is off."""
    warm_cycles: int = 0
    """First cycles that only regress the student on the teachers' images (all times, from fresh noise
    whatever the anchor: the fake score then starts as a copy). Beyond the paper, for runs of minutes."""
    imitation_cycles: int = 0
    """Cycles after these that regress the student on the teachers' velocities, along new ways from noise. A
    sample costs 4 forward-equivalents for 3 (5 with guidance), but few pictures of an effect are not learnt
    by heart. Beyond the paper, for long runs."""
    on_policy: float = 0.0
    """Share of the imitation's ways that the student itself takes, in few steps, on top of the few-step LoRA
    if there is one (a teacher on top of that does without guidance). Beyond the paper."""
    imitation_gain: float = 1.0
    """Largest factor by which imitation asks for more of an effect's edit than its teacher makes, where the
    student's comes out smaller (:mod:`.gains`); 1 finds none, but those of an extended collection hold. Costs
    up to half a forward-equivalent a sample. Beyond the paper."""
    start_share: float = 0.0
    """Share that the weights which an extension starts from have in what is saved, A and B by themselves
    (weight-space ensembling, Wortsman et al. 2022). May be changed afterwards. Beyond the paper."""
    few_step_alone: bool = False
    """Of a collection that holds a few-step LoRA (`extend`), train this alone: the rest is frozen and sampled
    together with it. Beyond the paper."""
    seed: int = 0
    save_every: int = 50
    """Cycles between checkpoints."""
    bank_ram: int = 8
    """Teachers kept in RAM."""

    @property
    def start_cycles(self) -> int:
        """Cycles before distributions are matched."""
        return self.warm_cycles + self.imitation_cycles

    @property
    def matching_cycles(self) -> int:
        """Cycles that match distributions."""
        return self.cycles - self.start_cycles

    @property
    def needs_fake(self) -> bool:
        """Whether any cycle compares what a fake score makes of a sample."""
        return bool(self.matching_cycles and self.objective.matches)

    @property
    def learns_images(self) -> bool:
        """Whether any cycle learns from teachers' images."""
        matched = self.objective.ts_weight or self.objective.fm_weight
        return bool(self.warm_cycles or (self.matching_cycles and matched))

    def micro_batch_of(self, processes: int) -> int:
        """Samples of one forward where so many processes share a batch: few enough that none is idle, if
        pictures have one size."""
        most = min(self.micro_batch, max(1, self.batch // processes))
        return next(n for n in range(most, 0, -1) if self.batch % n == 0)


PRESETS: dict[str, dict[str, Any]] = {
    # But that effects are drawn equally often, whatever the number of their pictures, and that none of the
    # five updates of the fake score repeats the student's batch, as the first of the released code does.
    "paper": {"share_rollouts": False, "objective": {"anchor": "image"}},
    "default": {},
    # A day or two on one H100 for fifty effects of twenty pictures, of 512 to 768 pixels, and less with more
    # samples at a time (neither is set here: long_side, micro_batch). A quarter of the paper's updates: all
    # of them take a week at 1024 pixels. A quarter of its rank: at 128, adapters and optimizer states
    # together are nearly as large as the base. Not tuned.
    "one-gpu": {"cycles": 1200, "rank": 32},
    # An hour or less after the teacher images, with few pictures of 512 pixels: shows whether lists, captions
    # and teachers are right before a day is spent, not how good the collection will be. So most of it is the
    # cheap regression on the teachers' images, at a higher rate, and the rest has few updates. Not tuned.
    "preview": {
        "cycles": 300,
        "warm_cycles": 200,
        "p_effect": 0.8,
        "batch": 4,
        "rank": 16,
        "lr": 3e-4,
        "fake_lr": 3e-4,
        "fake_ratio": 2,
        "save_every": 25,
    },
    # On top of a few-step LoRA (`few_step`): no teacher images, no fake score, a sixth of the evaluations.
    # Shown in the pocket alone; these numbers are not tuned.
    "imitation": {
        "cycles": 5000,
        "imitation_cycles": 5000,
        "on_policy": 0.5,
        "imitation_gain": 1.5,
        "rank": 32,
        "lr_schedule": "hold",
        "ema": 0.995,
    },
    # Afterwards, for fewer steps: of a collection (`extend`) the few-step LoRA alone goes on, by matching
    # distributions, on effects too. Shown in the pocket alone; not tuned.
    "few-steps": {
        "objective": {
            "ts_weight": 0.0,
            "fm_weight": 0.0,
            "floor": 0.1,
            "fake_base": "teacher",
            "half_share": 0.5,
        },
        "cycles": 3000,
        "few_step_alone": True,
        "fake_ratio": 2,
        "lr_schedule": "hold",
        "ema": 0.99,
        "start_share": 0.5,
    },
    # Minutes on two CPU cores: a first guess that works, not yet tuned.
    "pocket": {
        "objective": {"guidance": 0.0, "floor": 0.1},
        "cycles": 300,
        "warm_cycles": 240,
        "p_effect": 0.85,
        "batch": 12,
        "micro_batch": 12,
        "rank": 32,
        "lr": 1e-3,
        "fake_lr": 1e-3,
        "fake_ratio": 2,
        "lr_schedule": "cosine",
        "ema": 0.98,
        "bank_ram": 64,
    },
}

LARGEST_GAIN = 5

_RANGES: dict[str, tuple[float, float]] = {
    "bs_weight": (0, 1e3),
    "ts_weight": (0, 1e3),
    "fm_weight": (0, 1e3),
    "guidance": (0, 50),
    "floor": (0, 10),
    "steps": (1, 64),
    "targets.steps": (1, 200),
    "shift": (0.1, 20),
    "ts_steps": (1, 64),
    "ts_low": (0, 0.999),
    "half_share": (0, 1),
    "cycles": (1, 10**7),
    "fake_ratio": (1, 50),
    "p_effect": (0, 1),
    "batch": (1, 4096),
    "micro_batch": (1, 4096),
    "rank": (1, 1024),
    "alpha": (1e-3, 4096),
    "lr": (0, 1),
    "fake_lr": (0, 1),
    "betas": (0, 0.999999),
    "weight_decay": (0, 1),
    "clip": (1e-6, 1e6),
    "lr_warmup": (0, 10**6),
    "ema": (0, 0.99999),
    "warm_cycles": (0, 10**7),
    "imitation_cycles": (0, 10**7),
    "on_policy": (0, 1),
    "imitation_gain": (1, LARGEST_GAIN),
    "start_share": (0, 1),
    "seed": (0, 2**63 - 1),
    "save_every": (1, 10**6),
    "bank_ram": (1, 1000),
    "candidates": (1, 4096),
    "long_side": (64, 4096),
}


def distillation(values: Mapping[str, Any] | None = None, preset: str = "default") -> Distillation:
    """A checked configuration: the preset's values, overridden by `values` (as a TOML table gives them).

    Raises:
        ConfigError: an unknown preset or key (naming the nearest valid one), a wrong type, a value out of
            range, or values that exclude each other.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}")
    base, given = dict(PRESETS[preset]), dict(values or {})
    inner = given.pop("objective", {})
    if not isinstance(inner, Mapping):
        raise ConfigError(f"objective = {inner!r} must be a table, [distill.objective] in the file")
    objective = checked(Objective, {**base.pop("objective", {}), **inner}, "objective.")
    merged = {**base, **given}
    if "rank" in merged:
        merged.setdefault("alpha", merged["rank"])
    for kind in ("warm_cycles", "imitation_cycles"):
        if kind not in given and base.get(kind) == base.get("cycles", 0):  # all that the preset has
            merged[kind] = merged["cycles"]
    config = dataclasses.replace(checked(Distillation, merged, ""), objective=objective)
    _consistent(config)
    return config


def checked(kind: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    """`kind(**values)` for a dataclass after `checked_values`."""
    return kind(**checked_values(kind, values, where))


def checked_values(kind: type[Any], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Values for fields of a dataclass after checking names, types, choices and ranges; `where` prefixes keys
    in errors.

    Raises:
        ConfigError: as :func:`distillation`, for the first key that is wrong.
    """
    fields, hints = {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)
    result: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"unknown key {where}{key}{nearest(key, fields)}")
        choices = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
        result[key] = _converted(where + key, value, fields[key], choices)
    return result


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint to append to an error: the closest valid word, or all of them."""
    words = list(known)
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid are {', '.join(words)}"


def _consistent(config: Distillation) -> None:
    objective = config.objective
    if config.batch % config.micro_batch:
        raise ConfigError(
            f"micro_batch = {config.micro_batch} must divide batch = {config.batch}; try micro_batch = 1"
        )
    if objective.ts_steps > objective.steps:
        raise ConfigError(
            f"objective.ts_steps = {objective.ts_steps} is more than objective.steps = {objective.steps}; "
            f"set objective.ts_steps to at most {objective.steps}"
        )
    if not (objective.bs_weight or objective.ts_weight or objective.fm_weight):
        raise ConfigError("objective.bs_weight, ts_weight and fm_weight are all 0: nothing would be learned")
    if config.few_step_alone and (config.start_cycles or objective.fake_base != "teacher"):
        raise ConfigError(
            "few_step_alone matches distributions, with a fake score too small to know the effects: set "
            'objective.fake_base = "teacher", warm_cycles = 0 and imitation_cycles = 0'
        )
    if config.start_cycles > config.cycles:
        named = {"warm_cycles": config.warm_cycles, "imitation_cycles": config.imitation_cycles}
        both = " + ".join(f"{name} = {value}" for name, value in named.items() if value)
        raise ConfigError(f"{both} must be at most cycles = {config.cycles}")


def _converted(name: str, value: Any, field: dataclasses.Field[Any], choices: tuple[Any, ...]) -> Any:
    """`value` in the type of the field's default, checked; `name` is how errors call it."""
    default, limits = field.default, _RANGES.get(name, _RANGES.get(field.name))
    if choices:
        if value not in choices:
            raise ConfigError(f"{name} = {value!r}; valid are {', '.join(choices)}")
        return value
    if not isinstance(default, tuple):
        return _scalar(name, value, default, limits)
    # a pair stays a pair, a list of names may have any length
    if not isinstance(value, list | tuple) or not value or (limits and len(value) != len(default)):
        raise ConfigError(f"{name} = {value!r} must be a list like {list(default[:2])}")
    return tuple(_scalar(name, item, default[0], limits) for item in value)


def _scalar(name: str, value: Any, like: Any, limits: tuple[float, float] | None) -> Any:
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{name} = {value!r} must be true or false")
        return value
    if isinstance(like, str):
        if not isinstance(value, str):
            raise ConfigError(f"{name} = {value!r} must be a text like {like!r}")
        return value
    whole = isinstance(like, int)
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise ConfigError(f"{name} = {value!r} must be a {'whole ' if whole else ''}number")
    low, high = limits or (-math.inf, math.inf)
    if not low <= value <= high:  # false for NaN too
        raise ConfigError(f"{name} = {value!r} is out of range, {low:g} to {high:g}")
    return value if whole else float(value)
