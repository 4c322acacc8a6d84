"""Train the pocket's judge on true effects of training pictures; calibrate it on pictures it has not seen.

`python -m collectionlora.pocket.train.judge --weights DIR --images DIR` reads DIR/autoencoder.safetensors and
writes DIR/judge.safetensors: about half an hour on one core. All pictures pass through the autoencoder, so
that the judge condemns what a model did and not what the autoencoder costs.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...training.judging.broken import break_results
from ...training.judging.classifier import BROKEN, SOURCE, EffectClassifier, train_classifier
from ...training.judging.judge import Judge, calibrate
from ...training.randomness import generator
from ..autoencoder import Autoencoder
from ..effects import EFFECTS
from ..images import ImageSource
from ..photographs import Split

CLASSES = [*EFFECTS, SOURCE, BROKEN]
BROKEN_SHARE = 0.25
"""Of a training batch; the other classes share the rest. It has six faces where they have one."""
AVERAGED = 4
"""Draws of an effect with random places whose mean is broken: what too few steps make of it."""
SAME_SHAPES = (
    "duotone",
    "sketch",
    "blueprint",
    "chalkboard",
    "comic",
    "neon",
    "watercolour",
    "paper_cut",
    "flames",
)
"""One-to-many effects whose draws differ in colour or slant: a mean of four keeps 0.73 of their detail or
more and still shows the effect. Taught as broken, it cost a tenth of the true duotones."""
PLACED = [e.name for e in EFFECTS.values() if e.kind == "one-to-many" and e.name not in SAME_SHAPES]
"""Effects with random places: a mean of four draws keeps 0.67 of their detail or less."""
LATENT_NOISE = 0.06
"""Largest noise on the latents of training pictures: what a good sampler leaves over is no fault."""


@dataclass(frozen=True)
class Pool:
    """Pictures of one split as bytes: sources (S,3,H,W), what the autoencoder shows of them, of their effects
    (S,E,3,H,W) in the order of EFFECTS, and of means of several draws of an effect (A,E,3,H,W), A <= S."""

    sources: Tensor
    shown: Tensor
    effects: Tensor
    averaged: Tensor

    @classmethod
    def draw(
        cls,
        images: ImageSource,
        autoencoder: Autoencoder,
        split: Split,
        count: int,
        averaged: int,
        noise: float,
    ) -> Pool:
        """`count` random pictures of a split with all effects; the first `averaged` with means as well."""
        rng = np.random.default_rng([50, count])
        random = generator(0, "judge pool", split)
        parts: list[list[Tensor]] = [[], [], [], []]
        start = time.time()
        for i in range(count):
            source = images.sample(rng, split)
            drawn = [effect.apply(source, rng) for effect in EFFECTS.values()]
            if i < averaged:
                drawn += [
                    np.mean([effect.apply(source, rng) for _ in range(AVERAGED)], 0)
                    for effect in EFFECTS.values()
                ]
            pictures = torch.from_numpy(np.stack([source, *drawn])).movedim(-1, 1).contiguous()
            shown = to_bytes(reconstruct(autoencoder, pictures, noise, random))
            parts[0].append(to_bytes(pictures[0]))
            parts[1].append(shown[0])
            parts[2].append(shown[1 : 1 + len(EFFECTS)])
            if i < averaged:
                parts[3].append(shown[1 + len(EFFECTS) :])
            if (i + 1) % 50 == 0:
                print(f"{split} pictures {i + 1} of {count} seconds {time.time() - start:.0f}", flush=True)
        parts[3] = parts[3] or [parts[2][0][:0]]
        return cls(*(torch.stack(part) for part in parts))

    def batch(self, random: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Results and sources (size,3,H,W) in [0,1], labels (size,) long."""
        pick = torch.randint(len(self.sources), (size,), generator=random)
        labels = torch.randint(len(CLASSES) - 1, (size,), generator=random)
        labels[torch.rand(size, generator=random) < BROKEN_SHARE] = CLASSES.index(BROKEN)
        sources = floats(self.sources[pick])
        results = torch.stack([self._good(int(i), int(k), random) for i, k in zip(pick, labels)])
        broken = labels == CLASSES.index(BROKEN)
        if broken.any():
            results[broken] = self.broken(pick[broken], random)
        mirror = torch.rand(size, generator=random) < 0.5
        results[mirror], sources[mirror] = results[mirror].flip(3), sources[mirror].flip(3)
        return results, sources, labels

    def _good(self, i: int, label: int, random: torch.Generator) -> Tensor:
        if label < len(EFFECTS):
            return floats(self.effects[i, label])
        untouched = label == CLASSES.index(SOURCE) and float(torch.rand((), generator=random)) < 0.5
        return floats(self.sources[i] if untouched else self.shown[i])

    def broken(self, pick: Tensor, random: torch.Generator) -> Tensor:
        """A broken result (n,3,H,W) for each picked source (n,)."""
        count, several = len(pick), len(EFFECTS)
        effect, second = torch.randint(several, (2, count), generator=random)
        others = torch.where(
            (effect == second)[:, None, None, None], self.shown[pick], self.effects[pick, second]
        )
        shift = torch.randint(1, len(self.sources), (count,), generator=random)
        strangers = self.effects[(pick + shift) % len(self.sources), effect]
        results = break_results(floats(self.effects[pick, effect]), floats(others), floats(strangers), random)
        placed = torch.tensor([name in PLACED for name in EFFECTS])[effect]
        averaged = (torch.rand(count, generator=random) < 0.25) & (pick < len(self.averaged)) & placed
        results[averaged] = floats(self.averaged[pick[averaged], effect[averaged]])
        return results


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, pictures: Tensor, noise: float, random: torch.Generator) -> Tensor:
    """Pictures (n,3,H,W) in [0,1] after a round trip, with latent noise of random strength up to `noise`."""
    latents = autoencoder.encode(pictures)
    strength = noise * torch.rand(len(latents), 1, 1, 1, generator=random)
    return autoencoder.decode(latents + strength * torch.randn(latents.shape, generator=random))


def to_bytes(images: Tensor) -> Tensor:
    """[0,1] to 0..255, rounded."""
    return (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def floats(images: Tensor) -> Tensor:
    """0..255 to [0,1]."""
    return images.float() / 255


def calibrated(classifier: EffectClassifier, pool: Pool) -> Judge:
    """The judge with thresholds and accuracy from a pool that the classifier has not seen."""
    sources = floats(pool.sources)
    every = torch.arange(len(sources))
    return calibrate(
        classifier,
        {name: floats(pool.effects[:, k]) for k, name in enumerate(EFFECTS)},
        dict.fromkeys(EFFECTS, sources),
        {name: effect.subject for name, effect in EFFECTS.items()},
        {
            SOURCE: (floats(pool.shown), sources),
            BROKEN: (pool.broken(every, generator(0, "judge broken")), sources),
        },
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with autoencoder.safetensors")
    parser.add_argument("--out", type=Path, help="default: judge.safetensors in the folder of weights")
    parser.add_argument("--images", type=Path, help="node_modules folder with the picture packages")
    parser.add_argument("--pictures", type=int, default=300, help="training pictures")
    parser.add_argument("--held-out", type=int, default=120, help="pictures for thresholds and accuracy")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    autoencoder = Autoencoder.load(args.weights / "autoencoder.safetensors")
    images = ImageSource(args.images)
    pool = Pool.draw(images, autoencoder, "train", args.pictures, args.pictures // 3, LATENT_NOISE)
    start, recent = time.time(), [0.0, 0.0]

    def sample(step: int) -> tuple[Tensor, Tensor, Tensor]:
        return pool.batch(generator(args.seed, step, "judge batch"), args.batch)

    def progress(step: int, loss: float, accuracy: float) -> None:
        keep = 0.98 if step else 0.0
        recent[:] = [keep * old + (1 - keep) * new for old, new in zip(recent, (loss, accuracy))]
        if (step + 1) % 25 == 0:
            words = f"step {step + 1} loss {recent[0]:.3f} accuracy {recent[1]:.3f}"
            print(f"{words} seconds {time.time() - start:.0f}", flush=True)

    classifier = train_classifier(sample, CLASSES, args.steps, args.seed, progress)
    classifier.half().float()  # what is stored is what is calibrated
    held_out = Pool.draw(images, autoencoder, "tune", args.held_out, args.held_out, 0.0)
    judge = calibrated(classifier, held_out)
    print(f"accuracy {judge.accuracy} false alarms {judge.false_alarm}")
    for name, share in judge.recall.items():
        confidence, subject = judge.confidence.get(name, 0), judge.subject.get(name, 0)
        print(f"{name:14} recall {share:.3f} confidence {confidence:.3f} subject {subject:.3f}")
    classifier.half()
    judge.save(args.out or args.weights / "judge.safetensors")


if __name__ == "__main__":
    main()
