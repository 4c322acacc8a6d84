"""A configuration is right or refused by name, with the remedy."""

from __future__ import annotations

import dataclasses
import math
import sys
from itertools import product

import pytest

from collectionlora.training import config as config_module
from collectionlora.training.config import (
    PRESETS,
    ConfigError,
    Distillation,
    Objective,
    checked,
    distillation,
    nearest,
)
from collectionlora.training.lora import PAPER_TARGETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def to_toml(config: Distillation) -> str:
    def text(value: object) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return f"[{', '.join(map(text, value))}]"
        return repr(value)  # Python's numbers and quoted words are TOML's

    values = dataclasses.asdict(config)
    objective = values.pop("objective")
    lines = ["[distill]", *(f"{key} = {text(value)}" for key, value in values.items())]
    lines += ["[distill.objective]", *(f"{key} = {text(value)}" for key, value in objective.items())]
    return "\n".join(lines)


def test_the_defaults_are_the_papers():
    config = distillation(preset="paper")
    assert config == Distillation(Objective(anchor="image"), share_rollouts=False)
    assert distillation() == Distillation()
    assert config.objective == Objective(
        guidance=4.0, steps=8, shift=3.0, ts_steps=5, ts_low=0.5, anchor="image"
    )
    assert config.objective.sigmas == pytest.approx(
        [1, 0.9545454, 0.9, 0.8333333, 0.75, 0.6428571, 0.5, 0.3, 0]
    )
    assert config.objective.ts_sigmas == pytest.approx([0.8333333, 0.75, 0.6428571, 0.5, 0.3])
    assert (config.cycles, config.fake_ratio, config.p_effect, config.batch) == (5000, 5, 0.5, 8)
    assert (config.rank, config.alpha, config.clip) == (128, 128.0, 10.0)
    assert (config.lr, config.fake_lr) == (1e-4, 1e-4)
    assert (config.betas, config.weight_decay, config.ema) == ((0.9, 0.999), 0.01, 0.0)
    assert config.targets == PAPER_TARGETS


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_load_and_survive_toml(preset):
    config = distillation(preset=preset)
    values = tomllib.loads(to_toml(config))["distill"]
    assert distillation(values) == config
    assert distillation(values, "pocket") == config  # what is written comes before any preset


def test_values_come_before_the_preset_key_by_key():
    config = distillation({"cycles": 700, "objective": {"floor": 0.2}}, "pocket")
    assert (config.cycles, config.objective.floor) == (700, 0.2)
    assert config.warm_cycles == PRESETS["pocket"]["warm_cycles"]
    assert config.objective.guidance == PRESETS["pocket"]["objective"]["guidance"]
    assert distillation(preset="pocket").objective.floor == PRESETS["pocket"]["objective"]["floor"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cylces": 5}, "unknown key cylces; did you mean 'cycles'?"),
        ({"micro_bach": 5}, "unknown key micro_bach; did you mean 'micro_batch'?"),
        ({"objective": {"guidence": 1.0}}, "unknown key objective.guidence; did you mean 'guidance'?"),
        ({"xyz": 1}, "unknown key xyz; valid are objective, cycles, "),
        ({"lr": 2.0}, "lr = 2.0 is out of range, 0 to 1"),
        ({"cycles": 0}, "cycles = 0 is out of range, 1 to 1e+07"),
        ({"p_effect": -0.1}, "p_effect = -0.1 is out of range, 0 to 1"),
        ({"lr": math.nan}, "lr = nan is out of range"),
        ({"objective": {"guidance": math.inf}}, "objective.guidance = inf is out of range"),
        ({"cycles": 5.0}, "cycles = 5.0 must be a whole number"),
        ({"cycles": True}, "cycles = True must be a whole number"),
        ({"lr": "1e-4"}, "lr = '1e-4' must be a number"),
        ({"lr": False}, "lr = False must be a number"),
        ({"share_rollouts": 1}, "share_rollouts = 1 must be true or false"),
        ({"optimizer": "adam"}, "optimizer = 'adam'; valid are adamw, adamw8bit"),
        ({"optimizer": ["adamw"]}, "optimizer = ['adamw']; valid are adamw, adamw8bit"),
        ({"lr_schedule": "cosin"}, "lr_schedule = 'cosin'; valid are constant, cosine, hold"),
        ({"betas": 0.9}, "betas = 0.9 must be a list like [0.9, 0.999]"),
        ({"betas": [0.9]}, "betas = [0.9] must be a list like [0.9, 0.999]"),
        ({"betas": [0.9, 1.5]}, "betas = 1.5 is out of range"),
        ({"betas": [0.9, True]}, "betas = True must be a number"),
        ({"targets": "to_q"}, "targets = 'to_q' must be a list like ['to_q', 'to_k']"),
        ({"targets": []}, "targets = [] must be a list like"),
        ({"targets": ["to_q", 5]}, "targets = 5 must be a text like 'to_q'"),
        ({"objective": 5}, "objective = 5 must be a table, [distill.objective]"),
        ({"batch": 8, "micro_batch": 3}, "micro_batch = 3 must divide batch = 8; try micro_batch = 1"),
        ({"batch": 4, "micro_batch": 8}, "micro_batch = 8 must divide batch = 4"),
        ({"objective": {"steps": 4}}, "set objective.ts_steps to at most 4"),
        ({"objective": {"anchor": "noise"}}, "objective.anchor = 'noise'; valid are path, image"),
        ({"cycles": 10, "warm_cycles": 11}, "warm_cycles = 11 must be at most cycles = 10"),
        (
            {"cycles": 10, "warm_cycles": 6, "imitation_cycles": 5},
            "warm_cycles = 6 + imitation_cycles = 5 must be at most cycles = 10",
        ),
        ({"few_step_alone": True}, 'set objective.fake_base = "teacher", warm_cycles = 0'),
        (
            {"few_step_alone": True, "imitation_cycles": 5, "objective": {"fake_base": "teacher"}},
            "and imitation_cycles = 0",
        ),
        (
            {"objective": {"bs_weight": 0.0, "ts_weight": 0.0, "fm_weight": 0.0}},
            "are all 0: nothing would be learned",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_the_remedy(values, message):
    with pytest.raises(ConfigError) as caught:
        distillation(values)
    assert message in str(caught.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown preset 'papier'; did you mean 'paper'"):
        distillation(preset="papier")


def test_whole_numbers_are_taken_where_numbers_are_asked_for():
    config = distillation({"lr": 1, "betas": [0, 0.5], "objective": {"guidance": 3}})
    assert (config.lr, config.betas, config.objective.guidance) == (1.0, (0.0, 0.5), 3.0)
    assert isinstance(config.lr, float)
    assert isinstance(config.objective.guidance, float)


def test_every_number_has_a_range_and_the_defaults_lie_within():
    ranges = config_module._RANGES
    for kind in (Objective, Distillation):
        for field in dataclasses.fields(kind):
            default = field.default
            first = default[0] if isinstance(default, tuple) else default
            if isinstance(first, int | float) and not isinstance(first, bool):
                low, high = ranges[field.name]
                assert low <= first <= high


def test_other_tables_are_checked_alike():
    @dataclasses.dataclass(frozen=True)
    class Other:
        steps: int = 40
        name: str = "a"

    assert checked(Other, {"steps": 5}, "other.") == Other(5)
    with pytest.raises(ConfigError, match=r"unknown key other\.step; did you mean 'steps'"):
        checked(Other, {"step": 5}, "other.")
    with pytest.raises(ConfigError, match=r"other\.name = 5 must be a text"):
        checked(Other, {"name": 5}, "other.")


def test_nearest_names_one_or_all():
    assert nearest("appel", ["apple", "pear"]) == "; did you mean 'apple'?"
    assert nearest("zzz", ["apple", "pear"]) == "; valid are apple, pear"


def test_micro_batches_leave_no_process_idle():
    """Where the batch has a sample for each."""
    for batch, processes in product((4, 6, 8), range(1, 9)):
        for micro in (n for n in range(1, batch + 1) if batch % n == 0):
            size = distillation({"batch": batch, "micro_batch": micro}).micro_batch_of(processes)
            assert batch % size == 0
            assert batch // size >= min(processes, batch)
            assert processes > 1 or size == micro


def test_a_rank_alone_brings_its_alpha():
    assert (distillation({"rank": 32}).rank, distillation({"rank": 32}).alpha) == (32, 32.0)
    assert distillation({"rank": 32, "alpha": 64.0}).alpha == 64.0
    for preset, values in PRESETS.items():
        assert distillation(preset=preset).alpha == values.get("rank", 128)
        assert distillation({"rank": 4}, preset).alpha == 4.0
    with pytest.raises(ConfigError, match=r"^rank = 'x'"):
        distillation({"rank": "x"})


def test_a_preset_that_only_imitates_does_so_at_any_length():
    for cycles in (50, 8000):
        config = distillation({"cycles": cycles}, "imitation")
        assert config.imitation_cycles == cycles
        assert not config.needs_fake
    assert distillation({"cycles": 6000, "imitation_cycles": 5000}, "imitation").matching_cycles == 1000
    assert distillation({"cycles": 6000}).start_cycles == 0
