"""PDSR: what is drawn, how often, and that nothing but (seed, cycle, number) decides it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from collectionlora.training.data import Batch, Lessons, Sample, micro_batches, picked

CYCLES, BATCH = 500, 8


def drawn(lessons: Lessons, p_effect: float, seed: int = 0) -> list[Sample]:
    return [sample for cycle in range(CYCLES) for sample in lessons.draw(seed, cycle, range(BATCH), p_effect)]


@pytest.mark.parametrize("p_effect", [0.0, 0.5, 0.85, 1.0])
def test_the_effect_stream_has_its_probability_and_effects_and_images_are_uniform(p_effect, tiny):
    lessons = tiny.lessons()
    samples = drawn(lessons, p_effect)
    effects = Counter(sample.effect for sample in samples)
    general = effects.pop(None, 0)
    total = CYCLES * BATCH
    assert general / total == pytest.approx(1 - p_effect, abs=4 * (p_effect * (1 - p_effect) / total) ** 0.5)
    counts = Counter(id(sample) for sample in samples)
    # Pearson's chi-squared against the uniform law: 99.99% quantiles at 5 and 2 degrees of freedom
    every = [sample for part in lessons.effects.values() for sample in part]
    for pool, high in ((every, 25.7), (lessons.general, 18.4)):
        seen = [counts[id(sample)] for sample in pool]
        if sum(seen):
            mean = sum(seen) / len(seen)
            assert sum((n - mean) ** 2 / mean for n in seen) < high


def test_without_general_samples_every_draw_is_an_effects(tiny):
    lessons = tiny.lessons(general=0)
    assert all(sample.effect is not None for sample in drawn(lessons, 0.1))


def test_a_draw_depends_on_seed_cycle_and_number_alone(tiny):
    lessons = tiny.lessons()
    whole = lessons.draw(3, 9, range(16), 0.5)
    parts = [sample for i in range(0, 16, 4) for sample in lessons.draw(3, 9, range(i, i + 4), 0.5)]
    assert list(map(id, whole)) == list(map(id, parts))
    assert id(whole[5]) == id(lessons.draw(3, 9, [5], 0.5)[0])
    for other in ((4, 9), (3, 10)):
        assert list(map(id, whole)) != list(map(id, lessons.draw(*other, range(16), 0.5)))


def test_a_batch_mixes_streams_and_effects(tiny):
    effects = {sample.effect for sample in tiny.lessons().draw(0, 0, range(16), 0.5)}
    assert effects == {None, *tiny.EFFECTS}


def test_a_batch_stacks_its_samples(tiny):
    lessons = tiny.lessons()
    samples = [lessons.effects["neon"][0], lessons.general[1], lessons.effects["frost"][1]]
    batch = Batch.of(samples, [7, 8, 9])
    assert len(batch) == 3
    assert batch.numbers == (7, 8, 9)
    assert batch.effects == ("neon", None, "frost")
    assert batch.teachers() == ("frost", "neon")
    assert batch.seeded() == [0, 2]
    for i, sample in enumerate(samples):
        assert torch.equal(batch.source[i], sample.source)
        assert torch.equal(batch.student[i], sample.student)
        assert torch.equal(batch.teacher[i], sample.teacher)
        assert batch.targets[i] is sample.target


def test_a_micro_batch_has_pictures_of_one_size():
    sources = [torch.zeros(2, 4, size) for size in (4, 6, 4, 4, 6, 8, 4)]
    assert micro_batches(sources, 3) == [[0, 2, 3], [1, 4], [6], [5]]
    assert micro_batches(sources[:1] * 5, 2) == [[0, 1], [2, 3], [4]]


def test_prompts_of_a_batch_may_have_several_lengths():
    def sample(tokens: int) -> Sample:
        text = torch.zeros(4, 3)
        return Sample("a", torch.zeros(2, 4, 4), torch.randn(tokens, 3), text, text)

    samples = [sample(5), sample(2), sample(2)]
    batch = Batch.of(samples, [0, 1, 2]).to(torch.device("cpu"))
    assert [len(text) for text in batch.student] == [5, 2, 2]
    assert batch.teacher.shape == (3, 4, 3)
    assert picked(batch.student, [0, 1, 2]) is batch.student
    assert torch.equal(picked(batch.student, [2, 1]), torch.stack([samples[2].student, samples[1].student]))
    assert torch.equal(picked(batch.student, [0])[0], samples[0].student)


def test_a_pair_must_have_one_size_and_the_general_stream_no_target():
    text = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"effect 'a': source \(2, 4, 4\) and teacher image \(2, 4, 6\)"):
        Sample("a", torch.zeros(2, 4, 4), text, text, text, torch.zeros(2, 4, 6))
    with pytest.raises(ValueError, match="general stream has no teacher image"):
        Sample(None, torch.zeros(2, 4, 4), text, text, text, torch.zeros(2, 4, 4))


def test_lessons_need_effects_and_effects_need_samples(tiny):
    lessons = tiny.lessons()
    with pytest.raises(ValueError, match="no effect to distil"):
        Lessons({}, lessons.general)
    with pytest.raises(ValueError, match="effect 'empty' has no source image"):
        Lessons({**lessons.effects, "empty": []}, [])


def test_a_batch_goes_to_a_device_whole(tiny):
    samples = [*tiny.lessons().effects["frost"], *tiny.lessons().general[:1]]
    batch = Batch.of(samples, range(len(samples)))
    moved = batch.to(torch.device("meta"))
    tensors = [
        moved.source,
        moved.student,
        moved.teacher,
        moved.empty,
        *(t for t in moved.targets if t is not None),
    ]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.numbers, moved.effects, moved.seeded()) == (batch.numbers, batch.effects, batch.seeded())
    assert batch.source.device.type == "cpu"
