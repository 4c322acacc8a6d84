"""The judges' eye: a small network that names the effect a picture shows, given the source it was made from.

It sees result *and* source. The result alone cannot tell "nothing was done" from a photograph, nor another
picture's result from this one's; with the source, `source` (unchanged) and wrong subjects are visible. The
source comes with its mirror images, because a convolution cannot find them by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .randomness import generator

SOURCE = "source"
"""Class of results in which nothing was done."""
BROKEN = "broken"
"""Class of results that show no effect properly."""

Sample = Callable[[int], tuple[Tensor, Tensor, Tensor]]
"""Training step -> results (B,3,H,W), sources (B,3,H,W) in [0,1], labels (B,) long (indices of `classes`)."""

VIEWS = 5  # result, source, source mirrored left-right, top-bottom and both
WIDTHS = (24, 40, 64, 96)
FEATURES = WIDTHS[-1]
SMOOTHING = 0.05
TOLERANCE = (0.015, 0.03, 0.02)
"""What the judge must not mind in a result: noise, gain and offset (deviations; images have range 1)."""


class EffectClassifier(nn.Module):
    """About 380k parameters; images of any size divisible by 16, from 32 pixels.

    classes: names in the order of the logits; `source` and `broken` among them for the judges.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise ValueError(f"at least two different classes are needed, not {list(classes)}")
        self.classes = list(classes)
        with torch.random.fork_rng(devices=[]):  # layers initialise themselves from the global generator
            self.stem = nn.Conv2d(3 * VIEWS, WIDTHS[0], 3, stride=2, padding=1)
            self.stages = nn.ModuleList(
                nn.Sequential(_Down(first, second), _Residual(second)) for first, second in pairwise(WIDTHS)
            )
            self.hidden = nn.Sequential(
                nn.LayerNorm(2 * FEATURES), nn.Linear(2 * FEATURES, FEATURES), nn.SiLU()
            )
            self.head = nn.Linear(FEATURES, len(self.classes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU

    def features(self, results: Tensor, sources: Tensor) -> Tensor:
        """Penultimate layer (B, FEATURES) of results and sources, each (B,3,H,W) in [0,1]."""
        views = (results, sources, sources.flip(3), sources.flip(2), sources.flip(2, 3))
        x = self.stem(torch.cat(views, 1) * 2 - 1)
        for stage in self.stages:
            x = stage(x)
        flat = x.flatten(2)
        return self.hidden(torch.cat([flat.mean(2), (flat.var(2) + 1e-6).sqrt()], 1))

    def forward(self, results: Tensor, sources: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(results, sources))

    @torch.no_grad()
    def judge(self, results: Tensor, sources: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
        """Probabilities (B, classes) and features (B, FEATURES) of many images, `batch` at a time."""
        found = []
        for start in range(0, len(results), batch):
            features = self.features(results[start : start + batch], sources[start : start + batch])
            found.append((self.head(features).softmax(1), features))
        probabilities, features = zip(*found)
        return torch.cat(probabilities), torch.cat(features)


class _Down(nn.Module):
    """Half the resolution, more channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, before)
        self.convolution = nn.Conv2d(before, after, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.silu(self.norm(x)))


class _Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        branch = x
        for norm, convolution in zip(self.norms, self.convolutions):
            branch = convolution(F.silu(norm(branch)))
        return x + branch


def train_classifier(
    sample: Sample,
    classes: Sequence[str],
    steps: int = 600,
    seed: int = 0,
    progress: Callable[[int, float, float], None] | None = None,
    rate: float = 3e-3,
) -> EffectClassifier:
    """Train on `sample(0) ... sample(steps - 1)`; progress(step, loss, accuracy of the batch).

    AdamW with a short warm-up and cosine decay. Labels are smoothed, so that confidence stays informative
    below 1, and results are disturbed by as much noise and gain as no eye would mind, so that the judge does
    not mind either. The outcome depends on the samples, the seed and the thread count alone. Returns the
    network in eval mode.
    """
    network = EffectClassifier(classes)
    _initialise(network, seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + 1, pct_start=warm_up / steps, cycle_momentum=False
    )
    for step in range(steps):
        results, sources, labels = sample(step)
        logits = network(_disturb(results, generator(seed, step, "judge disturbance")), sources)
        loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step, float(loss.detach()), float((logits.argmax(1) == labels).float().mean()))
    return network.eval().requires_grad_(False)


def _initialise(network: EffectClassifier, seed: int) -> None:
    """Kaiming weights from a generator of our own; residual branches and the head start at zero."""
    draw = generator(seed, "judge weights")
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=draw)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in network.named_parameters():
        if name.endswith("convolutions.1.weight") or name == "head.weight":
            nn.init.zeros_(parameter)


def _disturb(results: Tensor, draw: torch.Generator) -> Tensor:
    noise, gain, offset = TOLERANCE
    amount = torch.rand(len(results), 1, 1, 1, generator=draw) * noise
    gains = 1 + gain * torch.randn(len(results), 3, 1, 1, generator=draw)
    offsets = offset * torch.randn(len(results), 3, 1, 1, generator=draw)
    return results * gains + offsets + amount * torch.randn(results.shape, generator=draw)
