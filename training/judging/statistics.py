"""Statistics of the judges: bootstrap intervals, and the distance between sets of pictures."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..randomness import generator

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Rounded to four digits; NaN (not measurable) stays NaN."""
        return {key: round(value, 4) for key, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Resamples:
    """Bootstrap resamples of groups of samples, the same for every effect, measure and row.

    groups: effect -> which group each sample belongs to, by the image or photograph that it was made from:
    an effect's outputs on one of these, and all effects' outputs on it, are drawn together. Groups that occur
    in the same set of effects form a stratum and are drawn from each other only, so every effect keeps its
    number of groups. Statistics are functions of weights (R+1, n): row 0 is the data as they are, the others
    are resamples.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[Hashable]], replicates: int = 1000, seed: int = 0
    ) -> None:
        occurs: dict[Hashable, tuple[str, ...]] = {}
        for effect in sorted(groups):
            for group in groups[effect]:
                if occurs.get(group, ())[-1:] != (effect,):
                    occurs[group] = (*occurs.get(group, ()), effect)
        number = {group: index for index, group in enumerate(occurs)}
        strata: dict[tuple[str, ...], list[int]] = {}
        for group, effects in occurs.items():
            strata.setdefault(effects, []).append(number[group])
        self.clusters = {effect: torch.tensor([number[g] for g in groups[effect]]) for effect in groups}
        sizes = torch.bincount(torch.cat(list(self.clusters.values()))).double()
        self._weights = torch.ones(replicates + 1, len(number), dtype=torch.float64)
        for position, members in enumerate(strata.values()):
            draws = torch.randint(
                len(members), (replicates, len(members)), generator=generator(seed, position, "bootstrap")
            )
            counts = torch.zeros(replicates, len(members), dtype=torch.float64)
            counts.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
            self._weights[1:, torch.tensor(members)] = counts
        # Groups of unequal sizes are worth fewer of equal ones (Kish's effective number).
        worth = [
            float(sizes[members].sum() ** 2 / sizes[members].square().sum()) for members in strata.values()
        ]
        self._smallest = min(worth)
        self._freedom = sum(worth) - len(worth)

    @property
    def count(self) -> int:
        """Number of different groups."""
        return self._weights.shape[1]

    def weights(self, effect: str) -> Tensor:
        """(R+1, n) weights of an effect's samples."""
        return self._weights[:, self.clusters[effect]]

    def mean(self, effect: str, values: Tensor) -> Tensor:
        """Weighted means (R+1,) of per-sample values (n,)."""
        weights = self.weights(effect)
        return weights @ values.double() / weights.sum(1)

    def interval(self, values: Tensor, outcomes: int | None = None) -> Interval:
        """Interval of a statistic from its (R+1,) values.

        The percentiles are widened for few groups (Hesterberg's expanded percentile interval: a resample's
        spread is too small by sqrt((n-1)/n), and a normal quantile stands where Student's belongs).
        `outcomes` marks a rate and gives the number of yes/no outcomes behind it, one a group and effect:
        where none or all of them are yes, resamples show no spread at all, and the exact binomial bound takes
        their place.
        """
        mean = float(values[0])
        if outcomes is not None and mean in (0.0, 1.0):
            bound = 1 - ((1 - LEVEL) / 2) ** (1 / outcomes)
            return Interval(0.0, 0.0, bound) if mean == 0 else Interval(1.0, 1 - bound, 1.0)
        spread = values[1:][torch.isfinite(values[1:])]
        if not math.isfinite(mean) or not len(spread) or not self._freedom:
            return Interval(mean, math.nan, math.nan)
        tail = _normal_tail(_student(self._freedom) * math.sqrt(self._smallest / max(1, self._smallest - 1)))
        low, high = torch.quantile(spread, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return Interval(mean, min(low, mean), max(high, mean))


def _student(freedom: float) -> float:
    """Quantile 0.975 of Student's distribution (Cornish-Fisher; within 1% from 3 degrees of freedom)."""
    z, v = 1.959964, max(freedom, 3.0)
    return z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)


def _normal_tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2))


def kernel_matrix(generated: Tensor, truths: Tensor) -> Tensor:
    """Pairwise terms h (n,n) float64 of the squared kernel distance between two sets of features (n,F).

    The kernel is the one of the energy distance, k(a,b) = -|a-b|: like KID it is an unbiased maximum mean
    discrepancy, zero only for equal distributions, but it grows linearly where KID's cubic polynomial lets
    one outlier decide. Chosen by trial on true pictures of 12 of the pocket's effects, n = 32: a blur of 1.2
    pixels lies 33 standard deviations of truth-against-truth away by this kernel, 15 by KID's, 12 by a
    Frechet distance with shrunk covariances (which is also biased: it has more dimensions than pictures).
    """
    generated, truths = generated.double(), truths.double()
    across = torch.cdist(generated, truths)
    return across + across.T - torch.cdist(generated, generated) - torch.cdist(truths, truths)


def kernel_distance(matrix: Tensor, clusters: Tensor, weights: Tensor) -> Tensor:
    """Squared kernel distance (R,) from `kernel_matrix` (n,n), numbers of groups (n,) and weights (R,n).

    Generated and true picture k share their source, and parts of one photograph are alike, so the sets are
    not independent; pairs within a group are left out, which keeps the estimate unbiased: 0 on average when
    truth is compared with truth (and then as often below as above), and the same in the mean of resamples,
    where a group stands beside its copies. NaN for weights on a single group.
    """
    pairs = (clusters[:, None] != clusters[None]).double()
    weights = weights.double()
    counted = ((weights @ pairs) * weights).sum(1)
    total = ((weights @ (matrix * pairs)) * weights).sum(1)
    return torch.where(counted > 0, total / counted.clamp(min=1e-12), torch.nan)
