"""General edits: short varied words, exact operations, and none of the effects among them."""

from __future__ import annotations

import numpy as np
import pytest

from collectionlora.pocket.edits import FAMILIES, LONGEST, sample_edit
from collectionlora.pocket.effects import EFFECTS

SIZE = 128
EVERY_FAMILY = pytest.mark.parametrize("name", list(FAMILIES))


def source() -> np.ndarray:
    coarse = np.random.default_rng(3).random((7, 7, 3), dtype=np.float32)
    return np.repeat(np.repeat(coarse, 19, 0), 19, 1)[:SIZE, :SIZE]


@EVERY_FAMILY
def test_results_keep_shape_type_and_range_and_leave_the_source_alone(name: str) -> None:
    rng = np.random.default_rng(1)
    image = source()
    before = image.copy()
    for _ in range(25):
        edit = FAMILIES[name][1](rng)
        result = edit.apply(image, rng)
        assert result.shape == image.shape, edit.instruction
        assert result.dtype == np.float32, edit.instruction
        assert result.min() >= -1e-6, edit.instruction
        assert result.max() <= 1 + 1e-6, edit.instruction
        np.testing.assert_array_equal(image, before, err_msg=edit.instruction)


@EVERY_FAMILY
def test_edits_change_the_picture_unless_they_say_keep(name: str) -> None:
    rng = np.random.default_rng(2)
    changed = [
        float(np.abs(FAMILIES[name][1](rng).apply(source(), rng) - source()).mean()) > 1e-3 for _ in range(20)
    ]
    assert not any(changed) if name == "keep" else np.mean(changed) > 0.8


def test_words_are_short_varied_ascii_sentences_without_blanks_to_fill() -> None:
    rng = np.random.default_rng(4)
    words = [sample_edit(rng).instruction for _ in range(3000)]
    assert max(len(text.encode()) for text in words) <= LONGEST
    assert len(set(words)) > 1000
    assert all(text.isascii() and text.strip() == text and "  " not in text for text in words)
    assert not any("{" in text for text in words)


def test_no_effect_is_among_the_edits() -> None:
    rng = np.random.default_rng(5)
    prompts = {effect.teacher_prompt for effect in EFFECTS.values()}
    assert not prompts & {sample_edit(rng).instruction for _ in range(3000)}


def test_the_same_generator_gives_the_same_edits_and_results() -> None:
    def run() -> list[tuple[str, np.ndarray]]:
        rng = np.random.default_rng(6)
        edits = [sample_edit(rng) for _ in range(30)]
        return [(edit.instruction, edit.apply(source(), rng)) for edit in edits]

    for (words, image), (again, twin) in zip(run(), run(), strict=True):
        assert words == again
        np.testing.assert_array_equal(image, twin)


def test_many_edits_leave_something_open() -> None:
    rng = np.random.default_rng(7)
    edits = [sample_edit(rng) for _ in range(300)]
    results = [(edit.apply(source(), rng), edit.apply(source(), rng)) for edit in edits]
    assert np.mean([not np.array_equal(first, second) for first, second in results]) > 0.35
