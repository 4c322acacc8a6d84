"""The judges on toy effects: true pictures pass, every kind of failure is found and called by its name."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from collectionlora.training.judging.broken import blur, break_results
from collectionlora.training.judging.classifier import BROKEN, SOURCE, EffectClassifier, train_classifier
from collectionlora.training.judging.judge import Judge, calibrate
from collectionlora.training.judging.report import judge_rows
from collectionlora.training.randomness import generator

SIZE = 32
EFFECTS = ["heat", "bars", "dots", "invert"]
CLASSES = [*EFFECTS, SOURCE, BROKEN]
KINDS = {"heat": "luma", "bars": "luma", "dots": "luma", "invert": "inverse"}


# -- toy effects -----------------------------------------------------------------------------------------


def toy_sources(count, seed):
    """Soft blobs with a bright square off the middle."""
    draw = generator(seed, "toy sources")
    images = F.interpolate(torch.rand(count, 3, 5, 5, generator=draw), SIZE, mode="bicubic").clamp(0, 1) * 0.6
    for image, left, top in zip(images, *torch.randint(2, 12, (2, count), generator=draw).tolist()):
        image[:, top : top + 8, left : left + 8] += 0.35
    return images


def heat(images, draw):
    grey = images.mean(1, keepdim=True)
    return torch.cat([grey, 0.5 * grey, 1 - grey], 1)


def bars(images, draw):
    """Dark bars of a random phase and slant."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    phase, slant = torch.rand(2, len(images), 1, 1, 1, generator=draw)
    return torch.where((x + slant * y + 8 * phase) % 8 < 2.5, 0.05, images)


def dots(images, draw):
    """White dots at random places."""
    seeds = (torch.rand(len(images), 1, SIZE, SIZE, generator=draw) < 0.03).float()
    return torch.where(F.max_pool2d(seeds, 3, 1, 1) > 0, 1.0, images)


def invert(images, draw):
    return 1 - images


APPLY = {"heat": heat, "bars": bars, "dots": dots, "invert": invert}


def true(effect, images, seed):
    """A draw of an effect's true results."""
    return APPLY[effect](images, generator(seed, "toy truth", effect)).clamp(0, 1)


def toy_broken(images, seed):
    """Broken results of all effects in turn."""
    results = [true(effect, images, seed) for effect in EFFECTS]
    own = torch.stack([results[index % 4][index] for index in range(len(images))])
    others = torch.stack([results[(index + 1) % 4][index] for index in range(len(images))])
    strangers = torch.stack([results[index % 4][index - 7] for index in range(len(images))])
    return break_results(own, others, strangers, generator(seed, "toy broken"))


def toy_sample(step):
    """A training batch: five of each effect, five sources, six broken."""
    images = toy_sources(31, seed=1000 + step)
    parts = [true(effect, images[5 * i : 5 * i + 5], step) for i, effect in enumerate(EFFECTS)]
    parts += [images[20:25], toy_broken(images, step)[25:]]
    labels = torch.tensor([label for label, part in enumerate(parts) for _ in range(len(part))])
    return torch.cat(parts), images, labels


@pytest.fixture(scope="module")
def judge():
    classifier = train_classifier(toy_sample, CLASSES, steps=160, seed=0)
    images = toy_sources(120, seed=1)
    return calibrate(
        classifier,
        truths={effect: true(effect, images, 2) for effect in EFFECTS},
        sources=dict.fromkeys(EFFECTS, images),
        kinds=KINDS,
        others={SOURCE: (images, images), BROKEN: (toy_broken(images, 3), images)},
    )


@pytest.fixture(scope="module")
def bench():
    """32 images an effect that the judge has not seen: sources and one draw of the truth."""
    images = toy_sources(32, seed=50)
    return dict.fromkeys(EFFECTS, images), {effect: true(effect, images, 51) for effect in EFFECTS}


@pytest.fixture(scope="module")
def report(judge, bench):
    sources, truths = bench
    after = {effect: EFFECTS[(k + 1) % 4] for k, effect in enumerate(EFFECTS)}
    rows = {
        "truth": {effect: true(effect, sources[effect], 52) for effect in EFFECTS},
        "source": sources,
        "other effect": {effect: truths[after[effect]] for effect in EFFECTS},
        "blurred": {effect: blur(truths[effect], 2.0) for effect in EFFECTS},
        "half": {effect: torch.cat([truths[effect][:16], sources[effect][16:]]) for effect in EFFECTS},
        "wrong subject": {effect: truths[effect].roll(1, 0) for effect in EFFECTS},
        "two effects": {effect: truths[effect] for effect in EFFECTS[:2]},
    }
    return judge_rows(judge, rows, sources, truths, unique=["heat", "invert"], replicates=300)


# -- the classifier --------------------------------------------------------------------------------------


def test_parts_of_one_photograph_are_drawn_together(judge, bench, report):
    sources, truths = bench
    groups = [k // 8 for k in range(32)]  # the sources that are left untouched are two of four photographs
    rows = {"half": {effect: torch.cat([truths[effect][:16], sources[effect][16:]]) for effect in EFFECTS}}
    grouped = judge_rows(judge, rows, sources, truths, groups, replicates=300)
    assert (report.images, report.photographs) == (32, 32)
    assert (grouped.images, grouped.photographs) == (32, 4)
    for measure, alone in report.rows["half"].items():
        if measure in ("psnr", "distance"):  # a distance leaves out pairs within a photograph
            continue
        together = grouped.rows["half"][measure]
        assert together.mean == pytest.approx(alone.mean)
        if measure == "bad_case":
            assert together.high - together.low > 1.5 * (alone.high - alone.low)
        if measure == "bleeding":
            assert together.mean == 0  # so that its bound is that of as many photographs
            assert together.high == pytest.approx(1 - 0.025 ** (1 / (4 * len(EFFECTS))))
    with pytest.raises(ValueError, match=r"heat.*32 pictures, 31 groups"):
        judge_rows(judge, rows, sources, truths, range(31))
    with pytest.raises(ValueError, match="not all parts of one"):
        judge_rows(judge, rows, sources, truths, [0] * 32)


def test_training_repeats_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two = (train_classifier(toy_sample, CLASSES, steps=2, seed=5) for _ in range(2))
    other = train_classifier(toy_sample, CLASSES, steps=2, seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = one.state_dict()
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in weights.items())
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in weights.items())


def test_classifier_is_small_and_takes_other_sizes():
    network = EffectClassifier(CLASSES)
    assert 250_000 < sum(parameter.numel() for parameter in network.parameters()) < 400_000
    for size in (32, 48, 64):
        assert network(torch.rand(2, 3, size, size), torch.rand(2, 3, size, size)).shape == (2, 6)


def test_classes_must_differ():
    with pytest.raises(ValueError, match="two different classes"):
        EffectClassifier(["a", "a"])


def test_progress_reports_every_step():
    seen = []
    train_classifier(toy_sample, CLASSES, steps=3, progress=lambda *line: seen.append(line))
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert all(math.isfinite(loss) and 0 <= accuracy <= 1 for _, loss, accuracy in seen)


# -- the judge -------------------------------------------------------------------------------------------


def test_judge_states_its_accuracy_on_held_out_pictures(judge):
    assert judge.effects == EFFECTS
    assert judge.accuracy.low <= judge.accuracy.mean <= judge.accuracy.high
    assert judge.accuracy.mean > 0.93
    assert set(judge.recall) == set(CLASSES)
    assert judge.false_alarm.mean < 0.08


def test_true_pictures_rarely_fail_and_every_failure_is_found(report):
    bad = {row: measures["bad_case"].mean for row, measures in report.rows.items()}
    assert bad["truth"] < 0.08
    assert bad["source"] == 1
    assert bad["other effect"] > 0.97
    assert bad["blurred"] > 0.7
    assert bad["wrong subject"] > 0.9
    assert bad["half"] == pytest.approx(0.5, abs=0.06)


def test_bleeding_is_another_effect_not_any_failure(report):
    bleeding = {row: measures["bleeding"].mean for row, measures in report.rows.items()}
    assert bleeding["other effect"] > 0.9
    assert max(bleeding[row] for row in ("truth", "source", "half")) < 0.03


def test_distance_is_zero_for_truth_and_one_for_the_source(report):
    distance = {row: measures["distance"] for row, measures in report.rows.items()}
    assert distance["truth"].low < 0.02
    assert abs(distance["truth"].mean) < 0.05
    assert distance["source"].mean == pytest.approx(1, abs=0.3)
    assert distance["truth"].high < distance["half"].low < distance["half"].high < distance["source"].low


def test_subject_detail_and_psnr_say_what_they_should(report):
    rows = report.rows
    assert rows["wrong subject"]["subject"].high < rows["truth"]["subject"].low
    assert rows["truth"]["detail"].mean == pytest.approx(1, abs=0.1)
    assert rows["blurred"]["detail"].high < 0.6
    assert rows["truth"]["psnr"].mean == 100
    assert set(report.replicates["truth"]["psnr"]) == {"heat", "invert"}


def test_confusion_rows_are_shares_and_lacking_effects_are_blank(report):
    assert torch.allclose(report.confusion["truth"].sum(1), torch.ones(4, dtype=torch.float64))
    assert float(report.confusion["truth"].diagonal().mean()) > 0.95
    assert float(report.confusion["source"][:, CLASSES.index(SOURCE)].min()) > 0.9
    assert torch.isnan(report.confusion["two effects"]).any(1).tolist() == [False, False, True, True]


def test_differences_are_paired(report):
    gap = report.difference("source", "truth")
    assert gap["bad_case"].low > 0.5
    assert gap["psnr"].high < 0
    same = report.difference("truth", "truth")
    assert all(abs(interval.mean) + abs(interval.low) + abs(interval.high) == 0 for interval in same.values())
    subset = report.difference("two effects", "source")
    expected = [report.by_effect[row][e]["subject"] for row in ("two effects", "source") for e in EFFECTS[:2]]
    assert subset["subject"].mean == pytest.approx((sum(expected[:2]) - sum(expected[2:])) / 2, abs=1e-3)


def test_report_is_plain_json_and_a_table(report):
    words = report.to_json()
    assert json.loads(json.dumps(words)) == words
    assert words["effects"] == EFFECTS
    assert words["images"] == 32
    assert {"mean", "low", "high"} == set(words["judge_accuracy"]) == set(words["rows"]["truth"]["bad_case"])
    lines = report.table(["bad_case", "distance"]).splitlines()
    assert len(lines) == 2 + len(words["rows"])
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["|", "|", "bad_case", "|", "distance", "|"]


def test_order_of_pictures_does_not_matter(judge, bench):
    sources, truths = bench
    order = torch.randperm(32, generator=generator(0, "order"))
    outputs = {effect: torch.cat([truths[effect][:20], sources[effect][20:]]) for effect in EFFECTS}
    turned = [
        {effect: part[effect][order] for effect in reversed(EFFECTS)} for part in (outputs, sources, truths)
    ]
    one = judge_rows(judge, {"row": outputs}, sources, truths, replicates=20).rows["row"]
    two = judge_rows(judge, {"row": turned[0]}, turned[1], turned[2], replicates=20).rows["row"]
    for measure, interval in one.items():
        assert two[measure].mean == pytest.approx(interval.mean, abs=1e-5)


def test_outputs_that_are_not_numbers_are_bad_cases(judge, bench):
    sources, truths = bench
    outputs = {"heat": torch.full_like(truths["heat"], torch.nan), "bars": truths["bars"] * 1e9}
    row = judge_rows(judge, {"row": outputs}, sources, truths, replicates=20).rows["row"]
    assert row["bad_case"].mean > 0.9
    assert all(math.isfinite(interval.mean) for interval in row.values())


def test_a_saved_judge_judges_alike(judge, bench, tmp_path):
    sources, truths = bench
    judge.save(tmp_path / "judge.safetensors")
    again = Judge.load(tmp_path / "judge.safetensors")
    for effect in EFFECTS:
        one, two = (j.examine(effect, truths[effect], sources[effect]) for j in (judge, again))
        assert torch.equal(one.bad, two.bad)
        torch.testing.assert_close(one.features, two.features)
    assert (again.accuracy, again.false_alarm, again.recall) == (
        judge.accuracy,
        judge.false_alarm,
        judge.recall,
    )


def test_files_that_are_no_judge_are_named(judge, tmp_path):
    path = tmp_path / "judge.safetensors"
    judge.save(path)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        whole.replace(b"collectionlora-judge 1", b"collectionlora-judge 9"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"judge\.safetensors is not a judge"):
            Judge.load(path)
    with pytest.raises(FileNotFoundError):
        Judge.load(tmp_path / "none.safetensors")


def test_missing_or_unequal_pictures_are_named(judge, bench):
    sources, truths = bench
    with pytest.raises(ValueError, match="row 'r', effect 'bars'"):
        judge_rows(judge, {"r": {"bars": truths["bars"][:3]}}, sources, truths)
    with pytest.raises(ValueError, match="row 'truths' lacks 'invert'"):
        judge_rows(judge, {}, sources, {effect: truths[effect] for effect in EFFECTS[:3]})
    with pytest.raises(ValueError, match="row 'r' has 'frost'"):
        judge_rows(judge, {"r": {"frost": truths["bars"]}}, sources, truths)
    with pytest.raises(ValueError, match="does not know the effect 'frost'"):
        judge_rows(judge, {}, {"frost": sources["bars"]}, truths)
    with pytest.raises(ValueError, match="does not know the effect 'frost'"):
        judge.examine("frost", truths["bars"], sources["bars"])
    one = [{effect: part[effect][:1] for effect in EFFECTS} for part in (sources, truths)]
    with pytest.raises(ValueError, match="at least 2"):
        judge_rows(judge, {"r": one[0]}, one[0], one[1])


def test_thresholds_need_enough_held_out_pictures(judge, bench):
    sources, truths = bench
    with pytest.raises(ValueError, match="heat: 32 held-out true pictures, at least 100"):
        calibrate(judge.classifier, truths, sources, KINDS)
