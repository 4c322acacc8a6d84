"""The judges: bad cases, bleeding, distance to the truth, subject preservation, detail energy.

PSNR is the wrong judge for one-to-many effects (it rewards the blurred mean), and no vision-language judge
can be had offline. Here the true effects can be drawn at will, so a small classifier is trained on them (as
the host's autoencoder shows them) and its thresholds are set by false alarms on true pictures that it has not
seen.

Everything works on plain image tensors (B,3,H,W) in [0,1]; who makes them is no concern of this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...collection.atomic import atomic_write
from .classifier import BROKEN, SOURCE, EffectClassifier
from .metrics import SubjectKind, subject_score
from .statistics import Interval, Resamples, kernel_distance, kernel_matrix

FORMAT = "collectionlora-judge 1"
FALSE_ALARM = 0.01
PICTURES_AT_LEAST = 100
"""Held-out true pictures an effect: fewer have no 1% quantile."""

Pictures = Mapping[str, Tensor]
"""effect -> images (n,3,H,W)."""


@dataclass(frozen=True)
class Verdict:
    """What the judge says of n outputs of one effect; tensors (n,)."""

    label: Tensor
    """Index of the recognised class."""
    confidence: Tensor
    """Probability of the effect that was asked for."""
    subject: Tensor
    """Subject preservation, a correlation in [-1,1]."""
    bad: Tensor
    """Bad case: wrong class, or confidence or subject below the effect's threshold. That of subject is near 1
    for effects that keep the source all but exactly."""
    bleeding: Tensor
    """Another effect is recognised, with confidence above that effect's threshold."""
    features: Tensor
    """(n,F), standardised: what distances are measured in."""


@dataclass
class Judge:
    """A trained classifier with the thresholds and the accuracy it has on held-out true pictures.

    Thresholds are per effect, each at the 1% quantile of that effect's held-out true pictures, so that none
    has many false alarms (`false_alarm`, some 3% by both together). One global threshold would put all of
    them on the hardest effects and be lax on the easy ones.
    """

    classifier: EffectClassifier
    kinds: dict[str, SubjectKind]
    confidence: dict[str, float]
    subject: dict[str, float]
    scale: dict[str, float]
    """Kernel distance between untouched sources and truth: the unit of `distance`."""
    centre: Tensor
    spread: Tensor
    """Mean and deviation (F,) of the features over true pictures."""
    accuracy: Interval
    """Share of held-out pictures of all classes that are named correctly, mean over classes."""
    recall: dict[str, float]
    """The same for each class."""
    false_alarm: Interval
    """Share of true pictures called bad cases, by thresholds set on other images: the floor of `bad_case`."""

    @property
    def effects(self) -> list[str]:
        """The effects the judge knows, in the order of its classes."""
        return [name for name in self.classifier.classes if name not in (SOURCE, BROKEN)]

    def examine(self, effect: str, results: Tensor, sources: Tensor) -> Verdict:
        """Judge results (n,3,H,W) that should show `effect` on `sources`.

        Values outside [0,1] are clamped as on a screen; NaN counts as black. Raises ValueError for an effect
        the judge does not know or sources of another shape.
        """
        if effect not in self.confidence:
            raise ValueError(
                f"the judge does not know the effect {effect!r}; it knows {', '.join(self.effects)}"
            )
        results = torch.nan_to_num(results.detach().float().cpu()).clamp(0, 1)
        sources = sources.detach().float().cpu()
        if results.shape != sources.shape:
            raise ValueError(f"{effect}: results {tuple(results.shape)} but sources {tuple(sources.shape)}")
        classes = self.classifier.classes
        probabilities, features = self.classifier.judge(results, sources)
        label, own = probabilities.argmax(1), classes.index(effect)
        confidence = probabilities[:, own]
        subject = subject_score(results, sources, self.kinds[effect])
        bad = (label != own) | (confidence < self.confidence[effect]) | (subject < self.subject[effect])
        # Thresholds of `source` and `broken` are out of reach: they are failures, not bleeding.
        limits = torch.tensor([self.confidence.get(name, 2.0) for name in classes])
        bleeding = (label != own) & (probabilities.amax(1) >= limits[label])
        return Verdict(label, confidence, subject, bad, bleeding, (features - self.centre) / self.spread)

    def save(self, path: Path) -> None:
        """Write one .safetensors file: weights, and everything else as JSON in its header."""
        words = {
            "classes": self.classifier.classes,
            "kinds": self.kinds,
            "confidence": self.confidence,
            "subject": self.subject,
            "scale": self.scale,
            "accuracy": vars(self.accuracy),
            "recall": self.recall,
            "false_alarm": vars(self.false_alarm),
        }
        weights = {f"classifier.{key}": value for key, value in self.classifier.state_dict().items()}
        weights |= {"centre": self.centre, "spread": self.spread}
        with atomic_write(path) as temporary:
            save_file(
                {key: value.contiguous() for key, value in weights.items()},
                temporary,
                {"format": FORMAT, "judge": json.dumps(words)},
            )

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Read what `save` wrote. Raises ValueError naming the file if it is not a judge."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            words = json.loads(metadata["judge"])
            classifier = EffectClassifier(words.pop("classes"))
            prefix = "classifier."
            own = {
                key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
            }
            classifier.load_state_dict(own)
            words |= {key: Interval(**words[key]) for key in ("accuracy", "false_alarm")}
            judge = cls(classifier, centre=weights["centre"], spread=weights["spread"], **words)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(f"{path} is not a judge of this version: {error}") from error
        classifier.eval().requires_grad_(False)
        return judge


def calibrate(
    classifier: EffectClassifier,
    truths: Pictures,
    sources: Pictures,
    kinds: Mapping[str, SubjectKind],
    others: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> Judge:
    """Set thresholds and measure accuracy on held-out true pictures.

    truths, sources: for every effect of the classifier at least 100 pairs it was not trained on, truths as
    the host's autoencoder shows them. others: (results, sources) of the classes `source` and `broken`, for
    accuracy only. The k-th picture of every effect is taken to be made from one image. Raises ValueError
    naming the effect for missing or too few pictures, and if an effect cannot be told from its source.
    """
    effects = [name for name in classifier.classes if name not in (SOURCE, BROKEN)]
    pictures = {effect: (truths[effect], sources[effect]) for effect in effects if effect in truths}
    for effect in effects:
        count = len(truths[effect]) if effect in truths else 0
        if count < PICTURES_AT_LEAST:
            raise ValueError(
                f"{effect}: {count} held-out true pictures, at least {PICTURES_AT_LEAST} are needed"
            )
    pictures |= others or {}
    resamples = Resamples({name: range(len(results)) for name, (results, _) in pictures.items()})
    right, confidence, subject, features = {}, {}, {}, {}
    for name, (results, origin) in pictures.items():
        probabilities, features[name] = classifier.judge(results, origin)
        own = classifier.classes.index(name)
        right[name] = (probabilities.argmax(1) == own).float()
        confidence[name] = torch.where(right[name].bool(), probabilities[:, own], -1.0)
        if name in effects:
            subject[name] = subject_score(results, origin, kinds[name])
    every = torch.cat([features[effect] for effect in effects])
    centre, spread = every.mean(0), every.std(0).clamp(min=1e-4)
    scale = {}
    for effect in effects:
        bare = classifier.judge(sources[effect], sources[effect])[1]
        matrix = kernel_matrix((bare - centre) / spread, (features[effect] - centre) / spread)
        clusters = resamples.clusters[effect]
        scale[effect] = float(kernel_distance(matrix, clusters, torch.ones(1, len(clusters)))[0])
        if scale[effect] <= 0:
            raise ValueError(f"{effect}: the judge cannot tell it from its source")
    named = torch.stack([resamples.mean(name, right[name]) for name in pictures]).mean(0)
    alarms = torch.stack(
        [resamples.mean(effect, _crossed_alarms(confidence[effect], subject[effect])) for effect in effects]
    )
    total = sum(len(truths[effect]) for effect in effects)
    return Judge(
        classifier,
        kinds={effect: kinds[effect] for effect in effects},
        # An effect of which over 1% of the true pictures are misnamed asks for no sureness beyond its name.
        confidence={effect: max(0.0, _threshold(confidence[effect])) for effect in effects},
        subject={effect: _threshold(subject[effect]) for effect in effects},
        scale=scale,
        centre=centre,
        spread=spread,
        accuracy=resamples.interval(named, outcomes=sum(len(values) for values in right.values())),
        recall={name: round(float(right[name].mean()), 4) for name in pictures},
        false_alarm=resamples.interval(alarms.mean(0), outcomes=total),
    )


def _threshold(scores: Tensor) -> float:
    return float(torch.quantile(scores, FALSE_ALARM, interpolation="lower"))


def _crossed_alarms(confidence: Tensor, subject: Tensor) -> Tensor:
    """Which true pictures are bad cases by thresholds set on the other half of them."""
    alarms = torch.zeros(len(confidence))
    even = torch.arange(len(confidence)) % 2 == 0
    for half in (even, ~even):
        wrong = confidence[half] < max(0.0, _threshold(confidence[~half]))
        alarms[half] = (wrong | (subject[half] < _threshold(subject[~half]))).float()
    return alarms
