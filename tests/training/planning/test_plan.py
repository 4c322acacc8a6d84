"""A plan turns operations into hours and chooses what fits."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from collectionlora.training.config import PRESETS, distillation
from collectionlora.training.planning.architecture import Architecture, Tokens
from collectionlora.training.planning.cards import CARDS, UTILISATION, Card, card, card_named
from collectionlora.training.planning.evaluations import (
    cycle_evaluations,
    imitation_evaluations,
    total,
)
from collectionlora.training.planning.footprint import (
    BF16,
    FP8,
    GIB,
    STORAGES,
    Job,
    Setting,
    Storage,
    base_bytes,
    device_bytes,
    kept_bytes,
    ram_bytes,
    sharded,
)
from collectionlora.training.planning.plan import (
    Plan,
    faster,
    hours,
    model_operations,
    plan,
    remedy,
    settings,
    shortage,
    target_evaluations,
    to_json,
    verdict,
    words,
)
from collectionlora.training.run_config import TeacherSampling

RANK_32: dict[str, Any] = {"rank": 32, "alpha": 32.0}
KEPT_UP = replace(card(80), launch=0.0)
"""No kernel waits to be launched."""
INSTANT = Card(1, "computes only", 1e6, 1e15, math.inf, math.inf)
"""Nothing but operations takes time on it."""
RESIDENT = STORAGES[:2]


# -- hours ---------------------------------------------------------------------------------------------------


def test_hours_are_operations_over_peak() -> None:
    job = Job(distillation(RANK_32), samples=30, targets=TeacherSampling(10, 4.0, 8), general=5)
    took = hours(job, Setting(), INSTANT, utilisation=0.5)
    forward = job.architecture.operations(job.tokens).forward
    speed = 0.5 * INSTANT.operations
    assert took.targets * 3600 == pytest.approx(30 * 10 * 2 * forward / speed, rel=0.02)  # 2%: the adapters
    copying = hours(replace(job, config=replace(job.config, batch=1)), Setting(), INSTANT, 1e9).cycle
    # attention's backward is 2.5 forwards, not 1, and adapters have gradients of their own
    assert took.cycle - copying == pytest.approx(8 * 29 * forward / speed, rel=0.15)
    assert took.cycle - copying > 8 * 29 * forward / speed
    assert took.cycles * 3600 == pytest.approx(5000 * took.cycle)
    assert took.all == took.targets + took.cycles
    assert hours(job, Setting(), INSTANT, 0.25).targets == pytest.approx(2 * took.targets)


def test_the_papers_schedule_takes_the_hours_of_its_operations() -> None:
    """330 H100 hours for 77 forward-equivalents (8 x 5000 cycles, 1.7e14 FLOP each); 51.5 of them here."""
    job = Job(distillation(preset="paper"), general=20_000)
    assert hours(job, Setting(), card(80)).cycles == pytest.approx(330 * 51.5 / 77, rel=0.15)


def test_without_checkpointing_attentions_scores_alone_are_computed_twice() -> None:
    job = Job(distillation(RANK_32))
    full, none = (hours(job, Setting(checkpointing=way), INSTANT).cycle for way in ("full", "none"))
    copying = hours(job, Setting(), INSTANT, 1e9).cycle
    gradients = total(cycle_evaluations(job.config, 1.0)).gradient
    operations, speed = job.architecture.operations(job.tokens), UTILISATION * INSTANT.operations
    needed = model_operations(job) + gradients * 8 * operations.scores
    assert none - copying == pytest.approx(needed / speed)
    assert full - none == pytest.approx(gradients * 8 * operations.forward / speed, rel=0.02)


def test_warm_cycles_cost_less() -> None:
    kinds = ({}, {"imitation_cycles": 90}, {"warm_cycles": 90})
    long, imitating, warm = (
        hours(Job(distillation({**RANK_32, "cycles": 100, **kind})), Setting(), card(80)).cycles
        for kind in kinds
    )
    assert warm < 0.3 * long
    assert warm < imitating < 0.6 * long


def test_unpacking_and_fetching_take_time_and_larger_batches_share_it() -> None:
    job = Job(distillation({**RANK_32, "micro_batch": 8}), side=512)
    kinds = [*RESIDENT, Storage("fp8, offloaded", weight=1, blocks=2)]
    alone, shared = (
        [hours(job, Setting(kind, "adamw", n), card(24)).cycle for kind in kinds] for n in (1, 8)
    )
    assert alone == sorted(alone)
    assert alone[0] < alone[1] < alone[2]
    once, together = (
        sum(part.equivalents / samples for part, samples in cycle_evaluations(job.config, 1.0, n))
        for n in (1, 8)
    )
    assert 1 / 8 < together / once < 1 / 6  # samples leave a rollout at different steps
    assert shared[1] - shared[0] == pytest.approx((alone[1] - alone[0]) * together / once)


def test_teacher_images_that_are_there_are_not_made() -> None:
    assert target_evaluations(Job(samples=1000)) == 1000 * 40 * 2
    assert target_evaluations(Job(samples=1000, missing=3, targets=TeacherSampling(5, 0.0))) == 15


# -- choice --------------------------------------------------------------------------------------------------


def jobs() -> list[Job]:
    configs = [distillation(RANK_32), distillation(preset="one-gpu"), distillation(preset="preview")]
    return [Job(config, side=side) for config in configs for side in (512, 768, 1024)]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: f"rank {job.config.rank}, {job.side}")
def test_a_larger_card_is_never_slower(job: Job) -> None:
    for storages in (RESIDENT, STORAGES):
        made = [plan(replace(job, storages=storages), replace(one, launch=0.0)) for one in CARDS]
        took = [one.hours.all if one.hours else math.inf for one in made]
        assert all(larger <= smaller for smaller, larger in pairwise(took))
        assert took[-1] < math.inf


def test_what_is_chosen_fits_and_nothing_that_fits_is_faster() -> None:
    job = Job(distillation({**RANK_32, "micro_batch": 2}), side=768)
    for one in CARDS:
        made = plan(job, one)
        others = [Plan(job, setting, one.room, one) for setting in settings(job)]
        fitting = [other for other in others if other.bytes <= one.room]
        assert bool(fitting) == (not made.missing)
        same = [o for o in fitting if o.setting.optimizer == made.setting.optimizer]
        if fitting:
            assert made.hours.all == min(o.hours.all for o in same)
        else:
            assert made.bytes == min(o.bytes for o in others)


def test_a_shrinking_room_takes_precision_of_the_base_then_of_the_moments() -> None:
    job = Job(distillation({**RANK_32, "batch": 1}))
    whole = plan(job, card(80))
    assert (whole.setting.storage.name, whole.setting.optimizer) == ("bf16", "adamw")
    job = replace(job, storages=RESIDENT, checkpointing=("full",))
    tight = plan(job, replace(card(80), memory=40))
    assert (tight.setting.storage.name, tight.setting.optimizer) == ("fp8", "adamw")
    tighter = plan(job, replace(card(80), memory=tight.bytes / GIB + 1))
    assert (tighter.setting.storage.name, tighter.setting.optimizer) == ("fp8", "adamw8bit")


def test_what_the_user_set_is_kept_where_it_fits() -> None:
    config = distillation({**RANK_32, "micro_batch": 4, "optimizer": "adamw8bit"})
    job = Job(config, side=512, targets=TeacherSampling(batch=3), checkpointing=("full",))
    chosen = plan(job, replace(card(80), launch=0.0)).setting
    assert (chosen.micro_batch, chosen.target_batch, chosen.optimizer) == (4, 3, "adamw8bit")
    job = replace(job, storages=(BF16,), targets=TeacherSampling(batch=1))
    tried = [setting.micro_batch for setting in settings(job)]
    assert list(dict.fromkeys(tried)) == [4, 2, 1, 8]


def test_blocks_that_are_not_fused_keep_more() -> None:
    job = Job(distillation(RANK_32), checkpointing=("full",))
    both = (device_bytes(replace(job, fused=fused), Setting(micro_batch=2)) for fused in (True, False))
    less, more = (phases["backward"]["activations"] for phases in both)
    assert (more - less) / GIB == pytest.approx(2 * 0.3, rel=0.05)


def test_where_kernels_wait_more_samples_go_at_a_time() -> None:
    job = Job(distillation(RANK_32), side=512)
    waiting, kept_up = (plan(job, one).setting.micro_batch for one in (card(80), KEPT_UP))
    assert waiting == 8
    assert kept_up == 1


def test_as_little_is_computed_twice_as_fits() -> None:
    whole = Job(distillation({**RANK_32, "batch": 1}), storages=STORAGES[:1])
    for side, policy in ((512, "none"), (1024, "selective")):
        assert plan(replace(whole, side=side), card(80)).setting.checkpointing == policy
    job = replace(whole, storages=RESIDENT)
    assert plan(job, replace(card(80), memory=36)).setting.checkpointing == "full"


def test_a_plan_says_which_settings_would_fit_and_which_would_be_much_faster() -> None:
    one, job = card(80), Job(distillation(RANK_32), side=512, storages=(BF16,), checkpointing=("full",))
    job = replace(job, targets=TeacherSampling(batch=1))
    slow = Plan(job, Setting(target_batch=1), one.room, one)
    best = plan(job, one)
    hours = f"{best.hours.all:.2f} h together"
    assert faster(slow) == (f"faster, with pictures of one size: micro_batch = 8, targets.batch = 4: {hours}")
    assert remedy(slow) == faster(best) == ""
    assert faster(replace(slow, card=None)) == ""  # of a card whose speed is not known
    asked = replace(job, side=1024, config=replace(job.config, micro_batch=8))
    large = replace(slow, job=asked, setting=Setting(micro_batch=8, target_batch=1))
    assert large.missing
    assert faster(large) == ""
    for speed in (one, None):
        said = remedy(replace(large, card=speed))
        assert re.fullmatch(r"[0-9.]+ GiB are missing; this would fit: micro_batch = 4", said)
    assert remedy(replace(large, room=1)).startswith("Nothing that can be set fits")


def test_a_machine_is_told_what_ram_and_disk_it_lacks() -> None:
    one = Plan(Job(distillation(RANK_32)), Setting(), card(80).room, card(80))
    ram, disk = (sum(to_json(one)[name].values()) for name in ("ram_bytes", "disk_bytes"))
    assert shortage(one, ram, disk) == ""
    assert re.fullmatch(
        r"The run will need [0-9.]+ GiB of RAM where there are [0-9.]+: .*", shortage(one, ram - 1, disk)
    )
    both = f"{disk / 2**30:.1f} GiB of the disk where there are 1.0: fewer pictures, or a lower rank."
    assert shortage(one, ram + one.bytes, disk, on_cpu=True) == ""
    assert shortage(one, ram + one.bytes - 1, disk, on_cpu=True)
    assert shortage(one, 0, 2**30).endswith(both)


def test_where_nothing_fits_the_plan_says_what_is_missing() -> None:
    made = plan(Job(), card(16))
    assert made.missing == made.bytes - card(16).room > 0
    assert made.hours is None
    assert f"Nothing that can be set fits: {made.missing / GIB:.2f} GiB are missing" in verdict(made)
    assert verdict(plan(Job(), card(80))) == ""
    assert to_json(made)["fits"] is False
    assert to_json(made)["hours"] is None


def test_what_encodes_must_fit_too() -> None:
    job = Job(distillation(RANK_32), side=512)
    assert not plan(job, card(24)).missing
    made = plan(replace(job, text_encoder=24 * GIB), card(24))
    assert made.missing > 4 * GIB


def test_a_small_card_gets_a_base_that_is_offloaded() -> None:
    job = Job(distillation(RANK_32))
    assert plan(replace(job, storages=RESIDENT), card(24)).missing
    made = plan(job, card(24))
    assert not made.missing
    assert made.setting.storage.blocks == 2
    blocks = sum(out * into for path, (out, into) in job.architecture.linears.items() if "blocks" in path)
    assert ram_bytes(job, made.setting)["offloaded base"] == blocks * made.setting.storage.weight
    assert ram_bytes(job, Setting())["offloaded base"] == 0
    alone = replace(job, config=replace(job.config, batch=1))
    assert plan(alone, card(80)).setting.storage.name == "bf16"


def test_several_cards_share_batches_and_teacher_images() -> None:
    one = Job(distillation({**RANK_32, "batch": 8}), samples=30)
    four = replace(one, devices=4)
    alone, shared = (hours(job, Setting(), INSTANT) for job in (one, four))
    assert shared.targets == pytest.approx(alone.targets / 4)
    copying = hours(one, Setting(), INSTANT, 1e9).cycle
    assert shared.cycle - copying == pytest.approx((alone.cycle - copying) / 4)
    linked = replace(INSTANT, link=1e9)
    sent = 2 * 0.75 * 4 * one.adapter * (1 + one.config.fake_ratio) / linked.link  # float32, round a ring
    assert hours(four, Setting(), linked).cycle - shared.cycle == pytest.approx(sent)
    # a micro-batch goes to one device as a whole, divides the batch, and leaves no device idle
    together = replace(one, config=replace(one.config, micro_batch=4))
    assert [replace(together, devices=n).share(4) for n in (1, 2, 3, 4)] == [8, 4, 4, 2]
    assert [replace(one, devices=n).share(1) for n in (1, 2, 3, 4)] == [8, 4, 3, 2]
    assert {setting.micro_batch for setting in settings(replace(together, devices=3))} == {1, 2}


def test_several_cards_hold_a_part_of_the_base_each_where_a_whole_does_not_fit() -> None:
    job = Job(distillation(RANK_32), storages=(BF16,), devices=4)
    made = plan(job, card(32))
    assert made.setting.storage == sharded(4)
    assert not made.missing
    part = base_bytes(job.architecture, made.setting.storage) / base_bytes(job.architecture, BF16)
    assert 1 / 4 < part < 0.3  # and two blocks as a whole
    assert plan(job, card(80)).setting.storage == BF16
    assert sharded(4) not in {setting.storage for setting in settings(replace(job, devices=1))}


def test_the_peak_is_the_largest_phase() -> None:
    job = Job(distillation(RANK_32))
    for batch, phase in ((1, "backward"), (64, "teacher images")):
        made = Plan(job, Setting(FP8, "adamw", target_batch=batch), 0)
        phases = {name: sum(parts.values()) for name, parts in device_bytes(job, made.setting).items()}
        assert made.bytes == max(phases.values()) == phases[phase]
        assert made.peak[0] == phase
        assert made.hours is None


def test_tables_and_json_say_the_same() -> None:
    made = plan(Job(distillation(RANK_32)), card(80))
    content = to_json(made)
    assert sum(content["parts_bytes"].values()) == content["peak_bytes"] == made.bytes
    assert content["phases_bytes"][content["phase"]] == made.bytes
    assert content["disk_bytes"]["state"] == 2 * kept_bytes(made.job, made.setting)
    text = words(made)
    for name, size in content["parts_bytes"].items():
        assert f"{name:<32}{size / GIB:8.2f} GiB" in text
    assert f"{content['hours']['all']:8.2f} h" in text


# -- presets and cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [512, 640, 768])
@pytest.mark.parametrize("general", [0, 1000])
def test_one_gpu_distils_fifty_effects_in_a_day_where_the_processor_keeps_up(side: int, general: int) -> None:
    made = plan(Job(distillation(preset="one-gpu"), side=side, general=general), KEPT_UP)
    assert made.hours.all <= 24
    assert made.setting.optimizer == "adamw"


def test_a_preview_takes_an_hour_after_its_teacher_images() -> None:
    assert plan(Job(distillation(preset="preview"), side=512), KEPT_UP).hours.cycles <= 1


def test_a_processor_that_launches_slowly_makes_small_pictures_slow() -> None:
    job = Job(distillation(RANK_32), samples=0)
    small, large = (
        [hours(replace(job, side=side), Setting(), one).cycle for one in (KEPT_UP, card(80))]
        for side in (256, 2048)
    )
    assert small[1] > 2 * small[0]
    assert large[1] == large[0]


def test_imitation_takes_no_teacher_images_and_a_sixth_of_the_evaluations() -> None:
    config = distillation(preset="imitation")
    assert not config.learns_images
    assert config.matching_cycles == 0
    work = Job(config, general=1000, few_step_rank=64, missing=0)
    content, text = to_json(plan(work, card(80))), words(plan(work, card(80)))
    assert content["hours"]["targets"] == 0
    # a guided teacher on its way, one on a few-step LoRA; in half of the cycles gains for late states
    assert total(imitation_evaluations(replace(config, imitation_gain=1.0), 0.5, True)).equivalents == 4.5
    assert content["forward_equivalents"] == pytest.approx(4.645, abs=0.001)
    assert "5000 cycles of 8 samples of 4.645 forward-equivalents" in text
    assert content["seconds_per_cycle"] * config.cycles == pytest.approx(3600 * content["hours"]["cycles"])
    matching = plan(Job(distillation({**RANK_32, "cycles": config.cycles}), general=1000), card(80))
    assert content["hours"]["cycles"] < matching.hours.cycles / 5


def test_presets_of_one_card_are_shorter_and_narrower_than_the_paper() -> None:
    paper, day, look = (distillation(preset=name) for name in ("paper", "one-gpu", "preview"))
    assert paper.cycles > day.cycles > look.cycles
    assert paper.rank > day.rank > look.rank
    assert all(distillation(preset=name).alpha == distillation(preset=name).rank for name in PRESETS)


def test_the_full_size_is_that_of_qwen_image() -> None:
    """20B parameters; 1.7e14 FLOP a forward at 1024 x 1024 with 8.4k tokens."""
    full = Architecture()
    assert full.weights + full.other_parameters == pytest.approx(20.4e9, rel=0.01)
    assert full.operations(Tokens.of(1024, 256)).forward == pytest.approx(1.7e14, rel=0.02)
    assert Job().adapter == pytest.approx(1.18e9, rel=0.01)  # rank 128


def test_cards_are_known_by_size_and_by_the_name_of_the_device() -> None:
    assert [one.size for one in CARDS] == [16, 24, 32, 48, 80]
    assert all(0.9 * one.size < one.memory < one.size for one in CARDS)
    with pytest.raises(ValueError, match="gpu = 40: known are 16, 24, 32, 48, 80 GB"):
        card(40)
    assert card_named("NVIDIA GeForce RTX 4090") == card(24)
    assert card_named("NVIDIA H100 80GB HBM3") == card(80)
    for other in (
        "NVIDIA H100 PCIe",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "cpu",
    ):
        assert card_named(other) is None
