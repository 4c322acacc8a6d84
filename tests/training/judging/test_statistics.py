"""Intervals cover, images are the clusters, and the distance is zero for truth against truth."""

import math

import pytest
import torch

from collectionlora.training.judging.statistics import Resamples, kernel_distance, kernel_matrix
from collectionlora.training.randomness import generator


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


@pytest.mark.parametrize("sizes", [[1] * 6, [1] * 16, [1] * 40, [8, 6, 4, 3, 3, *[1] * 8]])
def test_intervals_cover_the_true_mean_at_their_level(sizes):
    group = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    groups = {"a": group.tolist(), "b": group.tolist()}
    hits = 0
    for trial in range(300):
        shared, own = normal(len(sizes), seed=2 * trial), normal(2, len(group), seed=2 * trial + 1)
        resamples = Resamples(groups, replicates=300, seed=trial)
        both = torch.stack([resamples.mean(e, shared[group] + own[k]) for k, e in enumerate(groups)]).mean(0)
        interval = resamples.interval(both)
        hits += interval.low <= 0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.99


def test_images_are_the_clusters():
    values = normal(10).repeat_interleave(20)
    clustered = Resamples({"a": [k // 20 for k in range(200)]})
    loose = Resamples({"a": range(200)})
    wide, narrow = clustered.interval(clustered.mean("a", values)), loose.interval(loose.mean("a", values))
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_shared_images_are_drawn_together_and_own_images_apart():
    shared = Resamples({"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]}, replicates=50)
    assert shared.count == 4
    assert torch.equal(shared.weights("a"), shared.weights("b").flip(1))
    own = Resamples({"a": [("a", k) for k in range(4)], "b": [("b", k) for k in range(4)]}, replicates=50)
    assert own.count == 8
    assert not torch.equal(own.weights("a"), own.weights("b"))
    for resamples in (shared, own):
        for effect in "ab":
            assert (resamples.weights(effect).sum(1) == 4).all()


def test_resamples_do_not_depend_on_the_order_of_effects():
    first = Resamples({"a": range(5), "b": range(3, 9)}, replicates=20, seed=1)
    second = Resamples({"b": range(3, 9), "a": range(5)}, replicates=20, seed=1)
    assert torch.equal(first.weights("b"), second.weights("b"))
    assert not torch.equal(first.weights("b"), Resamples({"b": range(3, 9)}, 20, seed=2).weights("b"))


def test_a_rate_of_zero_still_has_an_upper_bound():
    resamples = Resamples({"a": range(32)})
    never = resamples.interval(resamples.mean("a", torch.zeros(32)), outcomes=32)
    always = resamples.interval(resamples.mean("a", torch.ones(32)), outcomes=32)
    assert (never.mean, never.low, never.high) == (0, 0, pytest.approx(1 - 0.025 ** (1 / 32)))
    assert (always.mean, always.high, always.low) == (1, 1, pytest.approx(1 - never.high))


def test_one_image_has_a_mean_but_no_interval():
    resamples = Resamples({"a": [0, 0, 0]})
    interval = resamples.interval(resamples.mean("a", torch.tensor([1.0, 2.0, 3.0])))
    assert interval.mean == 2
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


def distance(left, right, clusters=None):
    clusters = torch.arange(len(left)) if clusters is None else clusters
    return float(kernel_distance(kernel_matrix(left, right), clusters, torch.ones(1, len(left)))[0])


def test_distance_of_truth_to_truth_is_zero_on_average_also_when_draws_share_their_source():
    values = []
    for trial in range(400):
        source = 2 * normal(32, 8, seed=trial)  # what both draws of the truth have in common
        left, right = source + normal(2, 32, 8, seed=10_000 + trial)
        values.append(distance(left, right))
    values = torch.tensor(values)
    error = float(values.std() / 20)
    assert abs(float(values.mean())) < 3 * error
    far = distance(source + normal(32, 8, seed=1), source + normal(32, 8, seed=2) + 1)
    assert far > 20 * error
    assert far > 5 * float(values.std())


def test_distance_sees_a_collapse_that_keeps_the_mean():
    truth = normal(64, 8, seed=1)
    assert distance(0.3 * normal(64, 8, seed=2), truth) > 5 * abs(distance(normal(64, 8, seed=3), truth))


def test_distance_grows_with_the_shift_and_ignores_the_order_of_pairs():
    truth, other = normal(32, 8, seed=1), normal(32, 8, seed=2)
    values = [distance(other + shift, truth) for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values)
    order = torch.randperm(32, generator=generator(0, "order"))
    assert distance(other[order], truth[order]) == pytest.approx(distance(other, truth))


@pytest.mark.parametrize("parts", [1, 4])
def test_repeated_groups_in_a_resample_do_not_move_the_distance(parts):
    shared = 3 * normal(32 // parts, 8, seed=4).repeat_interleave(parts, 0)  # parts of a photograph are alike
    left, right = shared + normal(2, 32, 8, seed=5)
    resamples = Resamples({"a": [k // parts for k in range(32)]}, replicates=2000)
    values = kernel_distance(kernel_matrix(left, right), resamples.clusters["a"], resamples.weights("a"))
    assert float(values[1:].mean()) == pytest.approx(float(values[0]), abs=0.15 * float(values.std()))


def test_distance_leaves_out_pairs_on_the_same_image():
    left, right = normal(2, 3, 4, seed=0)
    clusters = torch.tensor([0, 0, 1])
    matrix = kernel_matrix(left, right)
    expected = float(matrix[0, 2] + matrix[1, 2]) / 2
    assert distance(left, right, clusters) == pytest.approx(expected)
    assert math.isnan(distance(left, right, torch.zeros(3)))
