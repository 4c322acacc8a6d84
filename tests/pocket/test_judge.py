"""The judge's lessons: what is good, what is broken, and that the same seed draws the same."""

import numpy as np
import pytest
import torch

from collectionlora.pocket import WEIGHTS
from collectionlora.pocket.effects import EFFECTS
from collectionlora.pocket.images import load_folder
from collectionlora.pocket.shipped import judge_of
from collectionlora.pocket.train.judge import AVERAGED, CLASSES, PLACED, Pool, reconstruct
from collectionlora.training.judging.broken import blend, blur
from collectionlora.training.judging.classifier import BROKEN, SOURCE
from collectionlora.training.judging.metrics import psnr
from collectionlora.training.randomness import generator


class Pictures:
    """Stands for an ImageSource: shipped pictures in turn, whatever the split."""

    def __init__(self, pictures):
        self.pictures, self.splits, self.count = pictures, [], 0

    def sample(self, rng, split):
        self.splits.append(split)
        self.count += 1
        return self.pictures[self.count % len(self.pictures)]


class Perfect:
    """An autoencoder that loses nothing."""

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents.clamp(0, 1)


@pytest.fixture(scope="module")
def pictures(repository):
    return list(load_folder(repository / "pocket" / "pictures" / "test").values())


@pytest.fixture(scope="module")
def pool(pictures):
    return Pool.draw(Pictures(pictures), Perfect(), "train", 6, 3, 0.0)


def test_a_pool_holds_all_effects_of_its_own_split(pictures):
    source = Pictures(pictures)
    pool = Pool.draw(source, Perfect(), "tune", 2, 1, 0.0)
    assert set(source.splits) == {"tune"}
    assert pool.effects.shape == (2, len(EFFECTS), 3, 128, 128)
    assert pool.averaged.shape == (1, len(EFFECTS), 3, 128, 128)
    assert torch.equal(pool.sources, pool.shown)


def test_a_batch_repeats_and_holds_every_class(pool):
    one, two = (pool.batch(generator(1, "b"), 600) for _ in range(2))
    for first, second in zip(one, two):
        assert torch.equal(first, second)
    assert set(one[2].tolist()) == set(range(len(CLASSES)))
    share = float((one[2] == CLASSES.index(BROKEN)).float().mean())
    assert 0.15 < share < 0.35


def test_lessons_stay_aligned_under_mirroring(pool):
    results, sources, labels = pool.batch(generator(2, "b"), 100)
    untouched = labels == CLASSES.index(SOURCE)
    assert torch.equal(results[untouched], sources[untouched])


def test_broken_lessons_differ_from_every_true_one(pool):
    pick = torch.arange(6).repeat(20)
    broken = pool.broken(pick, generator(3, "b"))
    for k in range(len(EFFECTS)):
        assert (psnr(broken, pool.effects[pick, k].float() / 255) < 60).all()


def test_means_of_draws_lose_detail_where_places_are_random(pool):
    assert AVERAGED > 1
    for k, name in enumerate(EFFECTS):
        # structure of any size below the subject's: beams and spots of light are smooth
        pictures = (x[:3, k].float() / 255 for x in (pool.effects, pool.averaged))
        one, mean = ((x - blur(x, 6.0)).square().mean() for x in pictures)
        if name in PLACED:
            assert mean < 0.8 * one, name
    thermal = list(EFFECTS).index("thermal")
    assert torch.equal(pool.averaged[:, thermal], pool.effects[:3, thermal])


def test_round_trips_are_disturbed_by_noise_up_to_the_limit():
    images = torch.full((40, 3, 16, 16), 0.5)
    noisy = reconstruct(Perfect(), images, 0.06, generator(0, "r"))
    strength = (noisy - images).flatten(1).std(1)
    assert float(strength.max()) < 0.065
    assert float(strength.min()) < 0.01
    assert torch.equal(reconstruct(Perfect(), images, 0.0, generator(0, "r")), images)


@pytest.fixture(scope="module")
def examined(pictures):
    """The shipped judge, sources and true effects of test pictures."""
    sources = pictures[:8]
    rng = np.random.default_rng(0)

    def tensor(images):
        return torch.from_numpy(np.stack(images)).movedim(-1, 1).contiguous()

    truths = {
        name: tensor([effect.apply(source, rng) for source in sources]) for name, effect in EFFECTS.items()
    }
    return judge_of(WEIGHTS), tensor(sources), truths


def bad_share(judge, pictures, sources):
    return np.mean([float(judge.examine(e, x, sources).bad.float().mean()) for e, x in pictures.items()])


def test_shipped_judge_accepts_the_truth_and_nothing_else(examined):
    judge, sources, truths = examined
    assert judge.accuracy.mean > 0.95
    assert bad_share(judge, truths, sources) < 0.1
    names = list(truths)
    others = {name: truths[names[k - 1]] for k, name in enumerate(names)}
    spoilt = {
        "source": dict.fromkeys(names, sources),
        "another effect": others,
        "blurred": {name: blur(x, 3.0) for name, x in truths.items()},
        "blended": {name: blend(x, others[name], generator(0, "blend")) for name, x in truths.items()},
        "another picture": {name: x.roll(1, 0) for name, x in truths.items()},
    }
    for what, pictures in spoilt.items():
        assert bad_share(judge, pictures, sources) > 0.9, what
