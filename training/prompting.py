"""Asymmetric Orthogonal Prompting (paper, section on AOP): tags and student prompts.

The student (and the fake score) is prompted with `<tag> caption`, the teacher with the prompt it was trained
with. The paper draws one random tag an effect and never measures orthogonality; here many are drawn and the
set is chosen whose student-prompt embeddings are furthest from each other in the host's own text encoder.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..collection.atomic import write_text

Embed = Callable[[list[str]], Tensor]
"""Prompts -> (N, D), mean-pooled over tokens and averaged over source images where the encoder sees one."""

RANDOM_CHARACTERS = 8
TAG_LENGTH = 64
"""Characters of a tag that a catalogue holds."""
IMAGES_AT_LEAST = 8
"""Images to average over where the encoder sees the image: fewer measure the picture, not the prompt."""

SHORTLIST = 16
"""Candidates of an effect that the tag search measures exactly."""

COMPOSITION = "First turn the input into '{first}', then do '{second}'."
SHORT_COMPOSITION = "{first}, then {second}"
"""For encoders with a short context, such as the pocket's 192 bytes."""


def student_prompt(tag: str, caption: str) -> str:
    """The prompt of student, fake score and user: `<tag> caption`; without a tag (ablation) the caption."""
    return f"{tag} {caption}".strip()


def compose(first: str, second: str, form: str = COMPOSITION) -> str:
    """One instruction for two effects, A then B, from their student prompts (zero-shot composition A(+)B)."""
    words = {"{first}": first.rstrip(" ."), "{second}": second.rstrip(" .")}
    return re.sub(r"\{(?:first|second)\}", lambda found: words[found[0]], form)


def candidate_tags(name: str, count: int, seed: int) -> list[str]:
    """`count` different random tags `<name_XXXXXXXX>` of one effect; a long name is cut.

    They depend on nothing but name and seed, so adding an effect leaves the candidates of the others alone.
    """
    if count < 1:
        raise ValueError(f"at least one candidate tag is needed, not {count}")
    slug = re.sub(r"\W+", "_", name).strip("_") or "effect"
    slug = slug[: TAG_LENGTH - RANDOM_CHARACTERS - len("<_>")].rstrip("_")
    draw = random.Random(f"tag/{seed}/{name}")
    alphabet = string.ascii_letters + string.digits
    tags: dict[str, None] = {}  # ordered set
    while len(tags) < count:
        tags[f"<{slug}_{''.join(draw.choices(alphabet, k=RANDOM_CHARACTERS))}>"] = None
    return list(tags)


def embed_over_images(encode: Callable[[list[str], Any], Tensor], images: Sequence[Any]) -> Embed:
    """An `Embed` for encoders that see the image: the mean of `encode(prompts, image)` (N,D) over images.

    Raises ValueError for fewer than 8 images.
    """
    if len(images) < IMAGES_AT_LEAST:
        raise ValueError(
            f"prompt embeddings are averaged over at least {IMAGES_AT_LEAST} images, not {len(images)}"
        )

    def embed(prompts: list[str]) -> Tensor:
        total = encode(prompts, images[0]).double()
        for image in images[1:]:
            total = total + encode(prompts, image).double()
        return total / len(images)

    return embed


def similarity(embeddings: Tensor) -> Tensor:
    """Cosines between embeddings (N,D) after taking off their mean over effects -> (N,N) float64, diagonal 1.

    Without the centring every pair looks alike, because all prompts share the encoder's constant direction.
    For N centred vectors the largest off-diagonal cosine cannot be below -1/(N-1).
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    norms = centred.norm(dim=1, keepdim=True)
    # Vectors equal up to rounding have no direction of their own: count them as identical, not as noise.
    if float(norms.max()) <= 1e-9 * float(embeddings.double().norm(dim=1).max().clamp(min=1e-300)):
        return torch.ones(len(embeddings), len(embeddings), dtype=torch.float64)
    unit = centred / norms.clamp(min=1e-12)
    cosines: Tensor = (unit @ unit.T).clamp(-1, 1).fill_diagonal_(1.0)
    return cosines


def largest_pair(matrix: Tensor) -> tuple[int, int, float]:
    """Row, column and value of the largest off-diagonal entry; (0, 0, 0.0) when there is no pair."""
    count = len(matrix)
    if count < 2:
        return 0, 0, 0.0
    hidden = matrix.clone().fill_diagonal_(-torch.inf)
    index = int(hidden.argmax())
    return index // count, index % count, float(hidden.flatten()[index])


def mean_pair(matrix: Tensor) -> float:
    """Mean off-diagonal entry; 0.0 when there is no pair."""
    count = len(matrix)
    return float((matrix.sum() - matrix.trace()) / (count * (count - 1))) if count > 1 else 0.0


@dataclass(frozen=True)
class TagReport:
    """The chosen tags, and the similarity matrices (N,N; order: `names`) that say what the choice gained."""

    names: list[str]
    captions: dict[str, str]
    tags: dict[str, str]
    random_tags: dict[str, str]
    """One random tag an effect, as the paper draws them, or the only one it may have: the control."""
    without: Tensor
    """Captions alone."""
    random: Tensor
    chosen: Tensor

    def matrices(self) -> dict[str, Tensor]:
        """Matrices by title, in the order of a reader: before, control, after."""
        return {"no tags": self.without, "random tags": self.random, "chosen tags": self.chosen}

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and words: names, tags, and for every matrix its values, largest pair and mean."""
        out: dict[str, Any] = {"names": self.names, "tags": self.tags, "random_tags": self.random_tags}
        for title, matrix in self.matrices().items():
            row, column, value = largest_pair(matrix)
            out[title.replace(" ", "_")] = {
                "max": round(value, 4),
                "max_pair": [self.names[row], self.names[column]],
                "mean": round(mean_pair(matrix), 4),
                "matrix": [[round(float(cosine), 4) for cosine in line] for line in matrix],
            }
        return out

    @classmethod
    def from_json(cls, content: Mapping[str, Any], captions: Mapping[str, str]) -> TagReport:
        """Of `to_json`, matrices as far as it rounds them. Raises KeyError, TypeError, ValueError."""
        matrices = [torch.tensor(content[f"{kind}_tags"]["matrix"]) for kind in ("no", "random", "chosen")]
        return cls(content["names"], dict(captions), content["tags"], content["random_tags"], *matrices)


def choose_once(
    path: Path, asked: Sequence[Any], captions: Mapping[str, str], choose: Callable[[], TagReport]
) -> TagReport:
    """What `choose` gives, kept in a file for the next time that the same is `asked` (plain values, all that
    the choice depends on beside `captions`): on a large encoder the search takes many minutes.
    """
    key = hashlib.sha256(json.dumps([captions, *asked]).encode()).hexdigest()
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return TagReport.from_json(kept["report"], captions)
    except (OSError, KeyError, TypeError, ValueError):
        pass  # not there yet, or damaged
    report = choose()
    write_text(path, json.dumps({"key": key, "report": report.to_json()}))
    return report


def choose_tags(
    embed: Embed,
    captions: Mapping[str, str],
    candidates: int = 64,
    seed: int = 0,
    restarts: int = 4,
    batch: int = 128,
    fixed: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> TagReport:
    """Choose one of `candidates` random tags an effect so that the largest pairwise cosine is smallest.

    captions: effect name -> caption. Every student prompt is embedded once, `batch` at a time (N x candidates
    prompts in all); the search then only multiplies small matrices. Local search by single swaps from
    `restarts` starts; ties are broken by the mean cosine of each effect to its nearest neighbour. The result
    depends on the set of effects and the seed, not on the order of `captions`.
    fixed: effect name -> the tag that it has whatever the others get, "" for none.
    progress: `progress(done, all)` in prompts, after each batch.
    Raises ValueError for no effects, and for embeddings of a wrong shape or with NaN or Inf.
    """
    if not captions:
        raise ValueError("no effects to choose tags for")
    names, fixed = sorted(captions), fixed or {}
    count = candidates if len(names) > 1 else 1  # one alone has nothing to be far from
    tags = [[fixed[name]] if name in fixed else candidate_tags(name, count, seed) for name in names]
    prompts = [student_prompt(tag, captions[name]) for name, own in zip(names, tags) for tag in own]
    total = len(prompts) + len(names)
    with_tags = _embed_all(embed, prompts, batch, lambda done: progress(done, total))
    bare = [captions[name] for name in names]
    without = _embed_all(embed, bare, batch, lambda done: progress(len(prompts) + done, total))
    tables = torch.split(with_tags, [len(own) for own in tags])
    starts = [[0] * len(names)]
    draw = random.Random(f"start/{seed}")
    starts += [[draw.randrange(len(own)) for own in tags] for _ in range(restarts - 1)]
    picked = min((_local_search(tables, start) for start in starts), key=lambda found: found[0])[1]
    return TagReport(
        names=names,
        captions=dict(captions),
        tags={name: own[pick] for name, own, pick in zip(names, tags, picked)},
        random_tags={name: own[0] for name, own in zip(names, tags)},
        without=similarity(without),
        random=similarity(_rows(tables, [0] * len(names))),
        chosen=similarity(_rows(tables, picked)),
    )


def _rows(tables: Sequence[Tensor], picks: Sequence[int]) -> Tensor:
    """One row of each table (C,D) -> (N,D)."""
    return torch.stack([table[pick] for table, pick in zip(tables, picks)])


def _embed_all(embed: Embed, prompts: list[str], batch: int, progress: Callable[[int], None]) -> Tensor:
    parts = []
    for start in range(0, len(prompts), batch):
        chunk = prompts[start : start + batch]
        part = embed(chunk).detach().double().cpu()
        if part.ndim != 2 or len(part) != len(chunk):
            raise ValueError(f"the encoder gave shape {tuple(part.shape)}, not ({len(chunk)}, D)")
        if not torch.isfinite(part).all():
            raise ValueError(f"the encoder gave NaN or Inf for a prompt like {chunk[0]!r}")
        parts.append(part)
        progress(start + len(chunk))
    return torch.cat(parts)


def _local_search(tables: Sequence[Tensor], start: list[int]) -> tuple[tuple[float, float], list[int]]:
    """Single swaps until none helps. N tables (C,D), C of each effect's own -> ((largest cosine, mean nearest
    cosine), picks)."""
    middle = torch.cat(list(tables)).mean(0)
    tables = [table - middle for table in tables]  # the keys centre too; this keeps the Gram matrices precise
    picks = list(start)
    chosen = _rows(tables, picks)
    key = _keys((chosen @ chosen.T)[None])[0]
    improved = True
    while improved and len(picks) > 1:
        improved = False
        nearest = similarity(chosen).fill_diagonal_(-torch.inf).amax(1)
        # Only the effects of the worst pair can lower the maximum, so they are tried first.
        for effect in torch.argsort(nearest, descending=True, stable=True).tolist():
            own = tables[effect]
            short = _shortlist(own, chosen, effect)
            gram = (chosen @ chosen.T).repeat(len(short), 1, 1)
            cross = own[short] @ chosen.T  # (c,N): candidates against the others' present choice
            gram[:, effect, :] = cross
            gram[:, :, effect] = cross
            gram[:, effect, effect] = own[short].square().sum(1)
            keys = _keys(gram)
            best = min(range(len(keys)), key=keys.__getitem__)
            if keys[best] < key:
                key, picks[effect] = keys[best], int(short[best])
                chosen[effect] = own[picks[effect]]
                improved = True
                break
    return key, picks


def _shortlist(own: Tensor, chosen: Tensor, effect: int) -> Tensor:
    """Indices of the candidates (C,D) of `effect` furthest from the others (N,D) about the present mean.

    A swap moves the mean, so only these are measured exactly: cheap enough for 180 effects.
    """
    others = torch.arange(len(chosen)) != effect
    unit = torch.nn.functional.normalize(chosen[others] - chosen.mean(0), dim=1)
    nearest = (torch.nn.functional.normalize(own - chosen.mean(0), dim=1) @ unit.T).amax(1)
    return torch.argsort(nearest, stable=True)[:SHORTLIST]


def _keys(gram: Tensor) -> list[tuple[float, float]]:
    """Gram matrices (C,N,N) of raw vectors -> per matrix (largest, mean nearest) cosine after centring.

    Rounded, so that rounding noise neither looks like progress nor makes machines choose differently.
    """
    count = gram.shape[-1]
    row = gram.mean(1, keepdim=True)
    centred = gram - row - row.transpose(1, 2) + row.mean(2, keepdim=True)
    norm = centred.diagonal(dim1=1, dim2=2).clamp(min=1e-24).sqrt()
    cosine = centred / (norm[:, :, None] * norm[:, None, :])
    diagonal = torch.arange(count)
    cosine[:, diagonal, diagonal] = -torch.inf
    nearest = cosine.amax(2)
    return [
        (round(float(top), 7), round(float(mean), 7)) for top, mean in zip(nearest.amax(1), nearest.mean(1))
    ]
