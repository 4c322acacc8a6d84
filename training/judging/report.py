"""The judges' table: a row a way of making the pictures, a column a measure, all with intervals."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .judge import Judge, Pictures, Verdict
from .metrics import detail_energy, psnr
from .statistics import Interval, Resamples, kernel_distance, kernel_matrix

MEASURES: dict[str, str] = {
    "bad_case": "share of outputs of another class, or less sure or with less of the source than true ones",
    "bleeding": "share of outputs in which another effect is surely recognised",
    "distance": "squared kernel distance to true pictures; 0 = another draw of the truth, 1 = a source",
    "subject": "correlation with what must be kept of the source; compare with the row of the truth",
    "detail": "high-pass RMS over the truth's; 1 = as detailed as the truth",
    "psnr": "dB to the truth, over the effects whose truth is unique",
}
_DIGITS = {"psnr": 1, "distance": 3}  # a blur that the eye notices is a distance of 0.02
_RATES = ("bad_case", "bleeding")


@dataclass(frozen=True)
class JudgeReport:
    """What `judge_rows` found."""

    effects: list[str]
    classes: list[str]
    images: int
    """Source images of an effect."""
    photographs: int
    """What these are parts of, and what the intervals of rows are over."""
    accuracy: Interval
    """The judge's own, on held-out true pictures of all classes; its interval and the next are over these."""
    false_alarm: Interval
    rows: dict[str, dict[str, Interval]]
    """Row -> measure -> mean over its effects with 95% interval."""
    by_effect: dict[str, dict[str, dict[str, float]]]
    """Row -> effect -> measure."""
    confusion: dict[str, Tensor]
    """Row -> (effects, classes): share of outputs recognised as each class; NaN for effects it lacks."""
    resamples: Resamples
    replicates: dict[str, dict[str, dict[str, Tensor]]]
    """Row -> measure -> effect -> (R+1,)."""

    def difference(self, first: str, second: str) -> dict[str, Interval]:
        """first - second for every measure both rows have, over the effects both have.

        The resamples are the same for both, so what one photograph does to both rows cancels: an interval
        that leaves out 0 is a difference, also where the rows' own intervals overlap.
        """
        out = {}
        for measure, effects in self.replicates[first].items():
            other = self.replicates[second].get(measure, {})
            common = [effect for effect in effects if effect in other]
            if common:
                gaps = torch.stack([effects[effect] - other[effect] for effect in common])
                out[measure] = self.resamples.interval(gaps.mean(0))
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain numbers: effects, images, the judge's accuracy and false alarms, rows, values by effect."""
        return {
            "effects": self.effects,
            "images": self.images,
            "photographs": self.photographs,
            "judge_accuracy": self.accuracy.to_json(),
            "judge_false_alarm": self.false_alarm.to_json(),
            "rows": {
                row: {measure: interval.to_json() for measure, interval in measures.items()}
                for row, measures in self.rows.items()
            },
            "by_effect": self.by_effect,
        }

    def table(self, measures: Collection[str] = tuple(MEASURES)) -> str:
        """The rows as a GitHub table (also readable as plain text), means with intervals."""
        present = [m for m in measures if any(m in row for row in self.rows.values())]
        cells = [["", *present]]
        for name, row in self.rows.items():
            cells.append([name, *(_cell(row[m], _DIGITS.get(m, 2)) if m in row else "" for m in present)])
        widths = [max(len(line[column]) for line in cells) for column in range(len(present) + 1)]
        lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths)) + " |" for line in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join(lines)


def judge_rows(
    judge: Judge,
    rows: Mapping[str, Pictures],
    sources: Pictures,
    truths: Pictures,
    groups: Sequence[Hashable] | None = None,
    unique: Collection[str] = (),
    replicates: int = 1000,
    seed: int = 0,
) -> JudgeReport:
    """Judge every row of outputs.

    rows: row -> effect -> outputs (n,3,H,W); a row may lack effects and is then averaged over those it has.
    sources, truths: effect -> what the outputs were made from, and one true result of each as the host's
    autoencoder shows it; a row of the truth itself needs a second, independent draw. Picture k is made from
    one source in every effect. groups: n names of what each source is a part of (default: of nothing else);
    the bootstrap draws these. unique: effects with only one true result, for PSNR. Raises ValueError naming
    row and effect for missing or unequal pictures, and for fewer than 2 groups.
    """
    effects = [effect for effect in judge.effects if effect in sources]
    _check(effects, rows, sources, truths)
    parts = {effect: range(len(sources[effect])) if groups is None else groups for effect in effects}
    for effect in effects:
        if len(parts[effect]) != len(sources[effect]):
            raise ValueError(
                f"effect {effect!r}: {len(sources[effect])} pictures, {len(parts[effect])} groups"
            )
    resamples = Resamples(parts, replicates, seed)
    if resamples.count < 2:
        raise ValueError("the judges need pictures that are not all parts of one; at least 2 sources")
    true_features = {e: judge.examine(e, truths[e], sources[e]).features for e in effects}
    true_detail = {e: detail_energy(truths[e]) for e in effects}
    verdicts: dict[str, dict[str, Verdict]] = {}
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for row, outputs in rows.items():
        verdicts[row], found[row] = {}, {measure: {} for measure in MEASURES}
        for effect in (e for e in effects if e in outputs):
            pictures = torch.nan_to_num(outputs[effect].detach().float().cpu()).clamp(0, 1)
            verdict = judge.examine(effect, pictures, sources[effect])
            verdicts[row][effect] = verdict
            matrix = kernel_matrix(verdict.features, true_features[effect])
            distance = kernel_distance(matrix, resamples.clusters[effect], resamples.weights(effect))
            energy = resamples.mean(effect, detail_energy(pictures))
            values = {
                "bad_case": resamples.mean(effect, verdict.bad),
                "bleeding": resamples.mean(effect, verdict.bleeding),
                "distance": distance / judge.scale[effect],
                "subject": resamples.mean(effect, verdict.subject),
                "detail": (energy / resamples.mean(effect, true_detail[effect])).sqrt(),
            }
            if effect in unique:
                values["psnr"] = resamples.mean(effect, psnr(pictures, truths[effect]))
            for measure, value in values.items():
                found[row][measure][effect] = value
        found[row] = {measure: by_effect for measure, by_effect in found[row].items() if by_effect}
    return JudgeReport(
        effects=effects,
        classes=judge.classifier.classes,
        images=max(len(sources[effect]) for effect in effects),
        photographs=resamples.count,
        accuracy=judge.accuracy,
        false_alarm=judge.false_alarm,
        rows={
            row: {
                measure: resamples.interval(
                    torch.stack(list(by_effect.values())).mean(0),
                    sum(len(set(resamples.clusters[e].tolist())) for e in by_effect)
                    if measure in _RATES
                    else None,
                )
                for measure, by_effect in measures.items()
            }
            for row, measures in found.items()
        },
        by_effect={
            row: {
                effect: {m: round(float(v[effect][0]), 4) for m, v in measures.items() if effect in v}
                for effect in verdicts[row]
            }
            for row, measures in found.items()
        },
        confusion={row: _confusion(judge, effects, verdicts[row]) for row in rows},
        resamples=resamples,
        replicates=found,
    )


def _check(effects: list[str], rows: Mapping[str, Pictures], sources: Pictures, truths: Pictures) -> None:
    unknown = [effect for effect in sources if effect not in effects]
    if unknown or not effects:
        raise ValueError(
            f"the judge does not know the effect {unknown[0]!r}" if unknown else "no effect to judge"
        )
    for row, outputs in {"truths": truths, **rows}.items():
        missing = [e for e in effects if e not in outputs] if row == "truths" else []
        foreign = [effect for effect in outputs if effect not in effects]
        if missing or foreign or not outputs:
            what = (
                f"lacks {missing[0]!r}"
                if missing
                else f"has {foreign[0]!r}, which has no sources"
                if foreign
                else "is empty"
            )
            raise ValueError(f"row {row!r} {what}")
        for effect, pictures in outputs.items():
            if pictures.shape != sources[effect].shape:
                raise ValueError(
                    f"row {row!r}, effect {effect!r}: pictures {tuple(pictures.shape)}, "
                    f"sources {tuple(sources[effect].shape)}"
                )


def _confusion(judge: Judge, effects: list[str], verdicts: Mapping[str, Verdict]) -> Tensor:
    count = len(judge.classifier.classes)
    lines = []
    for effect in effects:
        if effect in verdicts:
            label = verdicts[effect].label
            lines.append(torch.bincount(label, minlength=count).double() / len(label))
        else:
            lines.append(torch.full((count,), torch.nan, dtype=torch.float64))
    return torch.stack(lines)


def _cell(interval: Interval, digits: int) -> str:
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
