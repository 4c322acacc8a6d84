"""The effects are what they declare: exact, random where they should be, distinct, true to the subject."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from collectionlora.pocket import draw
from collectionlora.pocket.effects import EFFECTS, PocketEffect

SIZE = 128
ALL = pytest.mark.parametrize("effect", EFFECTS.values(), ids=list(EFFECTS))


def scene() -> np.ndarray:
    """A sky, a dark ground, a light disc: a picture with a coarse layout, edges and colours."""
    y, _ = draw.grid(SIZE, SIZE)
    image = np.zeros((SIZE, SIZE, 3), np.float32)
    image[:] = (0.55, 0.7, 0.9)
    image[y[:, 0] > 80] = (0.25, 0.2, 0.1)
    canvas = draw.Canvas(SIZE)
    canvas.disc(52, 60, 30, (0.95, 0.85, 0.4))
    canvas.disc(52, 60, 12, (0.5, 0.1, 0.15))
    return canvas.over(image)


def coarse(image: np.ndarray) -> np.ndarray:
    """Brightness of squares of 16 pixels."""
    return draw.luma(image).reshape(SIZE // 16, 16, SIZE // 16, 16).mean((1, 3))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def test_most_effects_are_more_than_colour_maps() -> None:
    kinds = [effect.kind for effect in EFFECTS.values()]
    assert len(kinds) == 50
    assert kinds.count("colour") <= 10
    assert len(kinds) - kinds.count("colour") >= 30
    assert kinds.count("one-to-many") >= 20


def test_four_pairs_of_teacher_prompts_differ_in_one_word_and_no_others_do() -> None:
    near = 0
    for first, second in itertools.combinations(EFFECTS.values(), 2):
        a, b = first.teacher_prompt.split(), second.teacher_prompt.split()
        near += len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    assert near == 4
    assert len({effect.teacher_prompt for effect in EFFECTS.values()}) == len(EFFECTS)


@ALL
def test_a_result_is_a_picture_of_the_same_kind_even_for_flat_and_noisy_sources(effect: PocketEffect) -> None:
    noise = np.random.default_rng(5).random((SIZE, SIZE, 3), dtype=np.float32)
    for source in (np.zeros_like(noise), np.ones_like(noise), noise, scene()):
        before = source.copy()
        result = effect.apply(source, np.random.default_rng(1))
        assert result.shape == source.shape
        assert result.dtype == np.float32
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 1
        np.testing.assert_array_equal(source, before)


@ALL
def test_the_same_generator_gives_the_same_result(effect: PocketEffect) -> None:
    first, second = (effect.apply(scene(), np.random.default_rng(7)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@ALL
def test_one_to_many_effects_vary_and_the_others_do_not(effect: PocketEffect) -> None:
    first, second = (effect.apply(scene(), np.random.default_rng(seed)) for seed in (1, 2))
    change = float(np.abs(first - second).mean())
    if effect.kind == "one-to-many":
        assert change > 0.02
    elif effect.name != "duotone":  # a colour map, but of two random hues
        assert change == 0


@ALL
def test_the_subject_is_kept_as_declared(effect: PocketEffect) -> None:
    source = scene()
    results = [effect.apply(source, np.random.default_rng(seed)) for seed in range(4)]
    if effect.subject == "edges":
        wanted = draw.blur(draw.edges(source, 1.2), 2)
        assert min(correlation(draw.blur(draw.edges(result, 1.2), 2), wanted) for result in results) > 0.4
    elif effect.subject == "mirror":
        half = SIZE // 32
        assert min(correlation(coarse(result)[:half], coarse(source)[:half]) for result in results) > 0.99
    elif effect.subject == "quarter":
        half = SIZE // 32
        kept = [coarse(picture)[:half, :half] for picture in (source, *results)]
        assert min(correlation(result, kept[0]) for result in kept[1:]) > 0.99
    else:
        sign = -1 if effect.subject == "inverse" else 1
        # a drift and large flakes cover a third of this scene's dark ground
        assert np.mean([sign * correlation(coarse(result), coarse(source)) for result in results]) > 0.3


def test_effects_are_told_apart_on_the_same_picture() -> None:
    source = scene()
    results = {name: effect.apply(source, np.random.default_rng(3)) for name, effect in EFFECTS.items()}
    for (first, a), (second, b) in itertools.combinations([("source", source), *results.items()], 2):
        assert np.abs(a - b).mean() > 0.03, (first, second)


@ALL
def test_every_field_is_filled_and_prompts_are_short(effect: PocketEffect) -> None:
    assert effect.title
    assert effect.category
    assert effect.name.isidentifier()
    assert 0 < len(effect.teacher_prompt.encode()) <= 60
