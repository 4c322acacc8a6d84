"""Schedules, noising, samplers and the partial rollout; and the random draws they make."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from collectionlora.training import flow
from collectionlora.training.randomness import generator, generators, integers, noise_like, uniform

SIGMAS = flow.few_step_sigmas(8)


def curved(x: Tensor, sigma: Tensor, active: Sequence[int] | None = None) -> Tensor:
    """A velocity that depends on everything it is given; on the whole batch where nobody says which of it."""
    samples = torch.tensor(range(len(x)) if active is None else active)
    return torch.sin(3 * x) + (sigma + 0.1 * samples).reshape(-1, 1, 1)


def towards(target: Tensor) -> flow.Velocity:
    """The exact velocity if the data were the one point ``target``."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - target) / sigma.reshape(-1, 1, 1)

    return velocity


def test_eight_steps_are_the_exact_released_schedule() -> None:
    exact = (1, 21 / 22, 9 / 10, 5 / 6, 3 / 4, 9 / 14, 1 / 2, 3 / 10, 0)
    assert pytest.approx(exact, abs=1e-15) == SIGMAS
    assert flow.seeded_sigmas(SIGMAS) == SIGMAS[3:8]


def test_fewer_steps_are_times_of_the_trained_schedule() -> None:
    for steps in (1, 2, 4, 8):
        assert flow.fewer_sigmas(SIGMAS, steps) == pytest.approx(flow.few_step_sigmas(steps))
    for steps in range(1, 9):
        chosen = flow.fewer_sigmas(SIGMAS, steps)
        assert len(chosen) == steps + 1
        assert set(chosen) <= set(SIGMAS)
        assert (chosen[0], chosen[-1]) == (1, 0)
        assert sorted(chosen, reverse=True) == list(chosen)
    assert flow.fewer_sigmas(SIGMAS, 20) == SIGMAS
    with pytest.raises(ValueError, match="at least 1"):
        flow.fewer_sigmas(SIGMAS, 0)


def test_nearest_times_are_of_the_schedule_and_each_once() -> None:
    assert flow.nearest_sigmas(flow.few_step_sigmas(40), SIGMAS[:-1]) == pytest.approx(SIGMAS[:-1])
    assert flow.nearest_sigmas((1, 0.7, 0.4, 0), (0.1, 0.6, 0.65, 0.9)) == (1, 0.7, 0.4)
    assert flow.nearest_sigmas(SIGMAS, ()) == ()


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 40])
def test_schedules_run_from_noise_to_image(steps: int) -> None:
    sigmas = flow.few_step_sigmas(steps)
    assert (sigmas[0], sigmas[-1], len(sigmas)) == (1.0, 0.0, steps + 1)
    assert list(sigmas) == sorted(sigmas, reverse=True)


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        flow.few_step_sigmas(0)
    with pytest.raises(ValueError, match="within 1 and 4"):
        flow.seeded_sigmas(flow.few_step_sigmas(4))
    with pytest.raises(ValueError, match="two sigmas"):
        flow.last(flow.euler(curved, torch.zeros(1, 2, 2), [1.0]))


def test_unshift_undoes_shift() -> None:
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(flow.unshift(flow.shift(t)), t)
    torch.testing.assert_close(flow.shift(t, 1.0), t)


def test_velocity_and_noising_are_inverse() -> None:
    x0, eps = torch.randn(2, 5, 3, 4, generator=generator(0), dtype=torch.float64)
    sigma = torch.linspace(0.1, 1, 5, dtype=torch.float64)
    x = flow.add_noise(x0, eps, sigma)
    torch.testing.assert_close(flow.x0_from_velocity(x, flow.velocity_target(x0, eps), sigma), x0)


def test_bfloat16_latents_are_noised_in_float32() -> None:
    x = flow.add_noise(torch.ones(1, 4).bfloat16(), torch.zeros(1, 4).bfloat16(), torch.tensor([0.9545454]))
    torch.testing.assert_close(x, torch.full((1, 4), 0.0454546))


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_both_samplers_find_a_single_data_point(steps: int) -> None:
    target = torch.randn(2, 3, 4, generator=generator(0))
    noise = torch.randn(2, 3, 4, generator=generator(1))
    sigmas = flow.few_step_sigmas(steps)
    torch.testing.assert_close(flow.last(flow.euler(towards(target), noise, sigmas)), target)
    sampled = flow.last(
        flow.consistency(towards(target), noise, sigmas, generators(0, 0, range(2), "sample"))
    )
    torch.testing.assert_close(sampled, target)


def test_samplers_give_the_state_after_each_step() -> None:
    noise = torch.randn(2, 3, 4, generator=generator(0))
    states = list(flow.consistency(curved, noise, SIGMAS, generators(0, 0, range(2), "sample")))
    assert len(states) == 8
    # the last step ends at the x0 that it predicts
    sigma = torch.full((2,), SIGMAS[7])
    torch.testing.assert_close(states[7], flow.x0_from_velocity(states[6], curved(states[6], sigma), sigma))
    one, two = flow.euler(curved, noise, (1.0, 0.5, 0.0))
    torch.testing.assert_close(one, noise - 0.5 * curved(noise, torch.ones(2)))
    torch.testing.assert_close(two, one - 0.5 * curved(one, torch.full((2,), 0.5)))


def test_consistency_sampling_renoises_with_fresh_noise_and_euler_does_not() -> None:
    noise = torch.randn(1, 3, 4, generator=generator(0))
    runs = [
        flow.last(flow.consistency(curved, noise, SIGMAS, generators(seed, 0, [0], "sample")))
        for seed in (1, 2)
    ]
    assert not torch.allclose(*runs)
    euler = [flow.last(flow.euler(curved, noise, SIGMAS)) for _ in range(2)]
    assert torch.equal(*euler)


def test_rollout_is_the_consistency_sampler_stopped() -> None:
    noise = torch.randn(9, 3, 4, generator=generator(0))
    states = list(flow.consistency(curved, noise, SIGMAS, generators(0, 0, range(9), "rollout")))
    x = flow.rollout(curved, noise, SIGMAS, torch.arange(9), generators(0, 0, range(9), "rollout"))
    assert torch.equal(x[0], noise[0])
    for k in range(8):
        torch.testing.assert_close(x[k + 1], states[k][k + 1])


def test_rollout_evaluates_only_the_samples_still_running() -> None:
    seen = []

    def count(x: Tensor, sigma: Tensor, active: Sequence[int]) -> Tensor:
        assert x.shape[0] == sigma.shape[0] == len(active)
        seen.append(list(active))
        return curved(x, sigma, active)

    flow.rollout(
        count, torch.zeros(3, 2, 2), SIGMAS, torch.tensor([2, 0, 4]), generators(0, 0, range(3), "r")
    )
    assert seen == [[0, 2], [0, 2], [2], [2]]


def test_rollout_of_a_sample_does_not_depend_on_its_batch() -> None:
    noise = torch.randn(4, 3, 4, generator=generator(0))
    stops = torch.tensor([5, 1, 7, 3])
    together = flow.rollout(curved, noise, SIGMAS, stops, generators(0, 0, range(4), "r"))
    for i in range(4):
        alone = flow.rollout(
            lambda x, sigma, active, i=i: curved(x, sigma, [i]),
            noise[i : i + 1],
            SIGMAS,
            stops[i : i + 1],
            generators(0, 0, [i], "r"),
        )
        torch.testing.assert_close(together[i : i + 1], alone)


def test_rollout_has_no_gradient_and_leaves_its_noise_alone() -> None:
    noise = torch.randn(2, 3, 4, generator=generator(0))
    kept = noise.clone()
    weight = torch.ones((), requires_grad=True)
    x = flow.rollout(
        lambda x, sigma, active: weight * x,
        noise,
        SIGMAS,
        torch.tensor([3, 3]),
        generators(0, 0, range(2), "r"),
    )
    assert not x.requires_grad
    assert torch.equal(noise, kept)


@pytest.mark.parametrize("stops", [[1], [1, 9], [-1, 1]])
def test_rollout_refuses_stops_that_do_not_fit(stops: list[int]) -> None:
    with pytest.raises(ValueError, match="stops"):
        flow.rollout(
            curved, torch.zeros(2, 2, 2), SIGMAS, torch.tensor(stops), generators(0, 0, range(2), "r")
        )


def test_shifted_times_follow_the_shifted_uniform_law() -> None:
    t = flow.uniform_shifted(generators(0, 0, range(2000), "time"))
    assert 0 <= t.min() < t.max() < 1
    assert t.median().item() == pytest.approx(0.75, abs=0.02)
    high = flow.uniform_shifted(generators(0, 0, range(2000), "time"), low=0.5)
    assert high.min() >= 0.75


@pytest.mark.parametrize("double_shift", [True, False])
def test_anchored_times_are_never_below_their_anchor(double_shift: bool) -> None:
    t_bs = flow.uniform_shifted(generators(0, 0, range(1000), "bs"))
    t = flow.anchored_times(generators(0, 0, range(1000), "ta"), t_bs, double_shift=double_shift)
    assert bool((t >= t_bs - 1e-6).all())
    assert t.max() <= 1


def test_anchored_times_shifted_twice_are_the_released_law() -> None:
    t_bs = torch.tensor([0.5, 0.75])
    u = uniform(generators(0, 0, range(2), "ta"), t_bs)
    torch.testing.assert_close(
        flow.anchored_times(generators(0, 0, range(2), "ta"), t_bs), 3 * u / (1 + 2 * u)
    )


def test_one_key_always_gives_the_same_draws_and_another_gives_others() -> None:
    def draw(*key: int | str) -> Tensor:
        return torch.randn(8, generator=generator(*key))  # type: ignore[arg-type]

    assert torch.equal(draw(1, 2, 3, "noise"), draw(1, 2, 3, "noise"))
    keys = [
        (1, 2, 3, "noise"),
        (1, 2, 3, "time"),
        (1, 23, "noise"),
        (12, 3, "noise"),
        (2, 2, 3, "noise"),
        (1, "23"),
    ]
    draws = {tuple(draw(*key).tolist()) for key in keys}
    assert len(draws) == len(keys)


def test_generators_are_the_same_in_every_process_and_version() -> None:
    # resumed runs depend on it: the numbers are part of the checkpoint's meaning
    assert generator(7, 3, 1, "noise").initial_seed() == 10405142883492108407


def test_draws_touch_no_global_generator() -> None:
    before = torch.get_rng_state()
    gens = generators(0, 0, range(3), "x")
    noise_like(torch.zeros(3, 4), gens)
    uniform(gens)
    integers(gens, 0, 8)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    together = noise_like(torch.zeros(3, 20), generators(0, 5, [10, 11, 12], "noise"))
    assert torch.equal(together[2:], noise_like(torch.zeros(1, 20), generators(0, 5, [12], "noise")))
    assert together.std().item() == pytest.approx(1, abs=0.3)


def test_noise_needs_one_generator_each() -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        noise_like(torch.zeros(3, 4), generators(0, 0, range(2), "noise"))


def test_integers_cover_their_range_evenly() -> None:
    counts = torch.bincount(integers(generators(0, 0, range(4000), "k"), 0, 8), minlength=8)
    assert counts.shape == (8,)
    assert counts.min() > 500 - 4 * math.sqrt(500)
