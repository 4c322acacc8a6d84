"""Measures of single images, and the ways of breaking them."""

import pytest
import torch
from torch.nn import functional as F

from collectionlora.training.judging import broken as bad
from collectionlora.training.judging.metrics import (
    SUBJECT_KINDS,
    correlation,
    detail_energy,
    psnr,
    subject_score,
)
from collectionlora.training.randomness import generator


@pytest.fixture
def images():
    """Six smooth pictures with a square each."""
    draw = generator(0, "metrics")
    pictures = F.interpolate(torch.rand(6, 3, 6, 6, generator=draw), 64, mode="bicubic").clamp(0, 1) * 0.7
    for image, left, top in zip(pictures, *torch.randint(4, 40, (2, 6), generator=draw).tolist()):
        image[:, top : top + 16, left : left + 16] += 0.3
    return pictures


PRESERVING = {
    "luma": lambda x: 0.5 * x + 0.2,
    "edges": lambda x: 1 - x,
    "inverse": lambda x: 1 - x,
    "mirror": lambda x: torch.cat([x[:, :, :32], x[:, :, :32].flip(2)], 2),
    "quarter": lambda x: torch.cat([x[..., :32], x[..., :32].flip(3)], 3),
}


@pytest.mark.parametrize("kind", SUBJECT_KINDS)
def test_subject_is_kept_by_what_keeps_it_and_lost_in_another_picture(images, kind):
    kept = subject_score(PRESERVING[kind](images), images, kind)
    lost = subject_score(PRESERVING[kind](images).roll(1, 0), images, kind)
    assert (kept > 0.999).all()
    assert (lost < 0.8).all()
    assert float(lost.mean()) < 0.4


def test_subject_sign_matters_only_where_it_should(images):
    assert (subject_score(1 - images, images, "luma") < -0.999).all()
    assert (subject_score(images, images, "inverse") > 0.999).all()


def test_flat_pictures_have_no_subject(images):
    flat = torch.full_like(images, 0.5)
    for kind in SUBJECT_KINDS:
        assert subject_score(flat, images, kind).tolist() == [0] * 6
        assert subject_score(images, flat, kind).tolist() == [0] * 6


def test_subject_of_unequal_shapes_or_unknown_kind_is_an_error(images):
    with pytest.raises(ValueError, match="differ in shape"):
        subject_score(images[:2], images, "luma")
    with pytest.raises(ValueError, match="unknown subject kind 'x'"):
        subject_score(images, images, "x")


def test_correlation_matches_the_definition():
    left, right = torch.randn(2, 3, 50, generator=generator(0, "corr"))
    expected = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(left, right)])
    torch.testing.assert_close(correlation(left, right), expected)


def test_detail_energy_tells_blur_from_noise(images):
    detail = detail_energy(images)
    assert (detail_energy(bad.blur(images, 2.0)) < 0.5 * detail).all()
    assert (detail_energy(bad.add_noise(images, 0.2, generator(0, "n"))) > 2 * detail).all()
    assert detail_energy(torch.full((1, 3, 16, 16), 0.3)).item() == pytest.approx(0, abs=1e-12)


def test_psnr_matches_the_definition(images):
    torch.testing.assert_close(psnr(images * 0.5, images * 0.5 + 0.1), torch.full((6,), 20.0))
    assert psnr(images, images).tolist() == [100] * 6


def test_blur_keeps_the_mean_and_shuffling_keeps_the_pixels(images):
    torch.testing.assert_close(
        bad.blur(images, 3.0)[:, :, 20:-20, 20:-20].mean(),
        images[:, :, 20:-20, 20:-20].mean(),
        atol=0.03,
        rtol=0,
    )
    shuffled = bad.shuffle_patches(images, 4, generator(0, "s"))
    assert not torch.equal(shuffled, images)
    assert torch.equal(shuffled.flatten(2).sort(2).values, images.flatten(2).sort(2).values)


def test_a_blend_holds_a_good_part_of_both(images):
    mixed = bad.blend(torch.zeros_like(images), torch.ones_like(images), generator(0, "b"))
    assert ((mixed >= 0.35) & (mixed <= 0.65)).all()


def test_broken_results_repeat_stay_in_range_and_are_broken(images):
    many = images.repeat(10, 1, 1, 1)
    one, two = (bad.break_results(many, 1 - many, many.roll(1, 0), generator(3, "b")) for _ in range(2))
    assert torch.equal(one, two)
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1
    assert (psnr(one, many) < 35).all()
