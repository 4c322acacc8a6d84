"""Properties of the losses that hold on any tensor."""

from __future__ import annotations

import pytest
import torch

from collectionlora.training import losses


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_guidance_weight_zero_is_the_conditional_prediction() -> None:
    cond, uncond = normal(2, 3), normal(2, 3, seed=1)
    assert torch.equal(losses.guided(cond, uncond, 0.0), cond)


def test_guidance_weight_four_is_scale_five_of_comfyui() -> None:
    cond, uncond = normal(2, 3), normal(2, 3, seed=1)
    torch.testing.assert_close(losses.guided(cond, uncond, 4.0), uncond + 5.0 * (cond - uncond))


def test_dmd_gradient_is_the_direction_over_the_size_of_a_sample() -> None:
    x0 = normal(3, 4, 5, 5).requires_grad_()
    direction = normal(3, 4, 5, 5, seed=1)
    losses.dmd_loss(x0, direction).sum().backward()
    torch.testing.assert_close(x0.grad, direction / 100)


def test_dmd_loss_is_computed_in_float64_even_for_bfloat16() -> None:
    loss = losses.dmd_loss(normal(2, 4).bfloat16(), normal(2, 4, seed=1).bfloat16())
    assert loss.dtype is torch.float64
    assert loss.shape == (2,)


def test_direction_does_not_depend_on_the_other_samples_of_the_batch() -> None:
    x0, x_fake, x_real = (normal(3, 4, 5, seed=seed) for seed in range(3))
    together = losses.dmd_direction(x0, x_fake, x_real)
    for i in range(3):
        alone = losses.dmd_direction(*(x[i : i + 1] for x in (x0, x_fake, x_real)))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_direction_carries_no_gradient() -> None:
    x0 = normal(2, 4).requires_grad_()
    assert not losses.dmd_direction(x0, x0 * 2, x0 * 3).requires_grad


def test_direction_is_zero_where_both_scores_agree_with_x0() -> None:
    x0 = normal(2, 4)
    assert torch.equal(losses.dmd_direction(x0, x0, x0), torch.zeros(2, 4))


@pytest.mark.parametrize("which", ["x_fake", "x_real"])
def test_a_score_that_is_no_number_is_not_taken_for_agreement(which: str) -> None:
    x0, scores = torch.zeros(1, 1, 2, 2), {"x_fake": torch.ones(1, 1, 2, 2), "x_real": torch.ones(1, 1, 2, 2)}
    scores[which] = scores[which] * torch.nan
    assert not losses.dmd_direction(x0, **scores).isfinite().any()


def test_floor_bounds_the_direction_and_leaves_larger_divisors_alone() -> None:
    x0 = torch.zeros(2, 4)
    x_fake = torch.ones(2, 4)
    x_real = torch.stack([torch.full((4,), 1e-6), torch.full((4,), -2.0)])
    near, far = losses.dmd_direction(x0, x_fake, x_real, floor=0.1)
    torch.testing.assert_close(near, torch.full((4,), 10.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(far, torch.full((4,), 1.5))


def test_flow_matching_loss_vanishes_on_the_true_velocity() -> None:
    x0, eps = normal(2, 4), normal(2, 4, seed=1)
    assert torch.equal(losses.flow_matching_loss(eps - x0, x0, eps), torch.zeros(2))


@pytest.mark.parametrize("seed", range(3))
def test_mean_of_the_sample_losses_is_the_mean_over_all_elements(seed: int) -> None:
    v, x0, eps = (normal(4, 2, 3, 3, seed=10 * seed + k) for k in range(3))
    ours = losses.flow_matching_loss(v, x0, eps)
    assert ours.shape == (4,)
    torch.testing.assert_close(ours.mean(), torch.nn.functional.mse_loss(v, eps - x0))
