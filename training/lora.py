"""Low-rank adapters apart from the model they adapt: the trainable one, and frozen teachers stacked."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from ..collection.errors import LoraFormatError
from ..collection.lora_weights import LoraWeights, Shapes
from ..collection.names import BLOCK_MODULES
from .low_rank import Factors, add_low_rank, cast
from .randomness import generator

PAPER_TARGETS = tuple(name.removeprefix("attn.") for name in BLOCK_MODULES)
"""Ends of the module paths that the released configuration adapts: all Linears of a block."""


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of anything that acts like a Linear, None for other modules.

    The declared features count before the weight's shape, because a quantised weight may be packed.
    """
    features = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if all(isinstance(n, int) for n in features):
        return features  # type: ignore[return-value]
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding):
        return weight.shape[0], weight.shape[1]
    return None


def linear_shapes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every Linear: what a teacher may adapt."""
    found = {path: linear_shape(child) for path, child in module.named_modules()}
    return {path: shape for path, shape in found.items() if shape is not None}


def target_shapes(module: nn.Module, targets: Sequence[str] = PAPER_TARGETS) -> dict[str, tuple[int, int]]:
    """:func:`targeted` among the Linears of a module."""
    return targeted(linear_shapes(module), targets, type(module).__name__)


def targeted(shapes: Shapes, targets: Sequence[str], owner: str) -> dict[str, tuple[int, int]]:
    """Module path -> (out, in) of every Linear whose path is, or ends in a dot and, one of ``targets``.

    Raises:
        ValueError: a target that matches no Linear of `owner` (a silent miss would train less than asked
            for).
    """
    found: dict[str, tuple[int, int]] = {}
    missed = dict.fromkeys(targets)
    for path, shape in shapes.items():
        hits = [target for target in targets if path == target or path.endswith(f".{target}")]
        if hits:
            found[path] = shape
            for hit in hits:
                missed.pop(hit, None)
    for target in missed:
        names = dict.fromkeys(path.rpartition(".")[2] for path in shapes)
        near = ", ".join(get_close_matches(target, names, 3, 0.5) or list(names)[:8])
        raise ValueError(f"targets: no Linear of {owner} is named {target!r}; there are, say, {near}")
    return found


def block_targets(module: nn.Module) -> tuple[str, ...]:
    """Targets for a model of another family: the ends of all Linears that lie in its lists of blocks."""
    found: dict[str, None] = {}
    for name, blocks in module.named_children():
        if isinstance(blocks, nn.ModuleList):
            for path in linear_shapes(blocks):
                found[path.split(".", 1)[1] if "." in path else f"{name}.{path}"] = None
    return tuple(found)


def added_up(loras: Sequence[LoraWeights]) -> LoraWeights:
    """One LoRA that does what all do together, at full strength: their A one below the other, their B side by
    side. Float32; a module's rank is the sum of theirs, its scale 1."""
    paths = dict.fromkeys(path for lora in loras for path in lora.down)
    holders = {path: [lora for lora in loras if path in lora.down] for path in paths}
    down = {p: torch.cat([lora.down[p].float() for lora in having]) for p, having in holders.items()}
    up = {p: torch.cat([lora.up[p].float() * lora.scale(p) for lora in h], 1) for p, h in holders.items()}
    return LoraWeights(down, up, {path: float(len(a)) for path, a in down.items()})


def widened(lora: LoraWeights, shapes: Shapes) -> LoraWeights:
    """The same LoRA on these modules too, where it adds zero; of its largest rank there."""
    lacking = {path: shape for path, shape in shapes.items() if path not in lora.down}
    rank = max(map(len, lora.down.values()))
    blank = LoraAdapter(lacking, rank, rank).weights()
    return LoraWeights(lora.down | blank.down, lora.up | blank.up, lora.alpha | blank.alpha)


def averaged(lora: LoraWeights, earlier: LoraWeights, share: float) -> LoraWeights:
    """`lora` with this share of an earlier state of the same adapter: the mean of their A and that of their
    B, in float32. Both have one alpha."""

    def mean(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {path: torch.lerp(t.float(), then[path].float(), share) for path, t in now.items()}

    return LoraWeights(mean(lora.down, earlier.down), mean(lora.up, earlier.up), lora.alpha)


def taken_apart(lora: LoraWeights, rank: int) -> tuple[LoraWeights, LoraWeights]:
    """Two LoRAs that `added_up` would make this one of, the second of this rank on every module. Where a
    module has no more than that, the first lacks it.

    Raises:
        LoraFormatError: the second would be larger than the whole, or all of it.
    """
    ranks = [lora.rank(path) for path in lora.down]
    if not 1 <= rank <= min(ranks) or rank == max(ranks):
        raise LoraFormatError(f"ranks of {min(ranks)} to {max(ranks)} do not hold another of rank {rank}")
    wider = [path for path in lora.down if lora.rank(path) > rank]
    first = LoraWeights(
        {path: lora.down[path][:-rank] for path in wider},
        {path: lora.up[path][:, :-rank] for path in wider},
        {path: lora.scale(path) * (lora.rank(path) - rank) for path in wider},
    )
    second = LoraWeights(
        {path: down[-rank:] for path, down in lora.down.items()},
        {path: up[:, -rank:] for path, up in lora.up.items()},
        {path: lora.scale(path) * rank for path in lora.down},
    )
    return first, second


def weights_hash(loras: Sequence[LoraWeights]) -> str:
    """Of all numbers and names, in order."""
    digest = hashlib.sha256()
    for lora in loras:
        for path in sorted(lora.down):
            digest.update(f"{path} {lora.scale(path)}".encode())
            for part in (lora.down[path], lora.up[path]):
                digest.update(part.float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


class LoraAdapter(nn.Module):
    """A trainable LoRA for Linears it does not own: delta(x) = (alpha / r) B A x for each module path.

    Master weights are float32; the arithmetic happens in the input's dtype. ``state_dict`` keys are
    ``down.<path>`` and ``up.<path>`` with ``/`` for the dots of the path.
    """

    def __init__(self, shapes: Shapes, rank: int, alpha: float, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, not {rank}")
        self.shapes = dict(shapes)
        self.rank = rank
        self.alpha = float(alpha)
        self.down = nn.ParameterDict(
            {_key(path): nn.Parameter(torch.zeros(rank, n, dtype=dtype)) for path, (_, n) in shapes.items()}
        )
        self.up = nn.ParameterDict(
            {_key(path): nn.Parameter(torch.zeros(n, rank, dtype=dtype)) for path, (n, _) in shapes.items()}
        )
        self.factors: dict[str, Factors] = {p: (self.down[_key(p)], self.up[_key(p)]) for p in shapes}
        """The same parameters by module path: A and B."""

    @classmethod
    def create(
        cls, shapes: Shapes, rank: int, alpha: float, seed: int, dtype: torch.dtype = torch.float32
    ) -> LoraAdapter:
        """A fresh adapter as PEFT initialises it: A Kaiming-uniform (within +-1/sqrt(in)), B zero, so delta =
        0.

        A module's A depends on ``seed`` and its path only, not on which other modules are adapted.
        """
        adapter = cls(shapes, rank, alpha, dtype)
        for path in shapes:
            nn.init.kaiming_uniform_(
                adapter.down[_key(path)], a=math.sqrt(5), generator=generator(seed, "lora", path)
            )
        return adapter

    @classmethod
    def of(cls, weights: LoraWeights) -> LoraAdapter:
        """A frozen adapter of weights of any ranks; smaller ones are padded with zeros."""
        rank = max(map(len, weights.down.values()))
        shapes = {path: (len(weights.up[path]), a.shape[1]) for path, a in weights.down.items()}
        adapter = cls(shapes, rank, rank)
        adapter.load(weights)
        return adapter.requires_grad_(False)

    @property
    def scale(self) -> float:
        """alpha / r."""
        return self.alpha / self.rank

    def forward(self, path: str, x: Tensor) -> Tensor:
        """The delta (..., out) that the Linear at ``path`` gains on input x (..., in)."""
        masters = self.factors[path]
        blank = x.new_zeros(*x.shape[:-1], len(masters[1]))
        return add_low_rank(blank, x, cast({path: masters}, x.dtype)[path], self.scale, masters)

    @torch.no_grad()
    def weights(self) -> LoraWeights:
        """A copy in plain form, on the CPU."""

        def copy(params: nn.ParameterDict) -> dict[str, Tensor]:
            return {path: params[_key(path)].detach().to("cpu", copy=True) for path in self.shapes}

        return LoraWeights(copy(self.down), copy(self.up), dict.fromkeys(self.shapes, self.alpha))

    @torch.no_grad()
    def load(self, weights: LoraWeights) -> None:
        """Do what these weights do; another alpha is folded into B. Where they have a smaller rank, lack a
        module, or are 0 in A and B, A stays and B is 0: that part adds nothing yet and can learn.

        Raises:
            LoraFormatError: naming the first module that the adapter has not, or not of such shapes. Nothing
                has been changed then.
        """
        for path, a in weights.down.items():
            if path not in self.shapes:
                raise LoraFormatError(f"{path} is missing from the adapter")
            (out, into), b = self.shapes[path], weights.up[path]
            if (a.shape[1], len(b)) != (into, out) or len(a) > self.rank:
                raise LoraFormatError(
                    f"{path}: A, B have shapes {(tuple(a.shape), tuple(b.shape))}, the adapter holds up to "
                    f"{((self.rank, into), (out, self.rank))}"
                )
        for path in self.shapes:
            up = self.up[_key(path)].zero_()
            if path in weights.down:
                # float32 first: 8-bit floats know no arithmetic
                a, b, rank = weights.down[path].float(), weights.up[path].float(), weights.rank(path)
                blank = ~(a.any(1) | b.any(0))[:, None].to(up.device)
                own = self.down[_key(path)][:rank]
                own.copy_(torch.where(blank, own, a.to(own)))
                up[:, :rank].copy_(b * (weights.scale(path) / self.scale))


@dataclass(frozen=True, eq=False)
class TeacherStack:
    """E frozen LoRAs side by side, so that each sample of a batch can have its own.

    Ranks are padded with zeros to the largest of the module, alpha / r is folded into B, a module that a
    teacher lacks is zero; one that all lack is absent.
    """

    names: tuple[str, ...]
    down: dict[str, Tensor]
    """module path -> A (E, r, in)."""
    up: dict[str, Tensor]
    """module path -> B (E, out, r)."""
    key: object = field(default_factory=object)
    """Tells this stack from others, and outlives its tensors."""

    @classmethod
    def of(cls, teachers: Mapping[str, LoraWeights]) -> TeacherStack:
        """Stack named LoRAs in their order, on the device and in the dtype they are in."""
        loras = list(teachers.values())
        down: dict[str, Tensor] = {}
        up: dict[str, Tensor] = {}
        for path in dict.fromkeys(path for lora in loras for path in lora.down):
            holders = [(e, lora) for e, lora in enumerate(loras) if path in lora.down]
            first = holders[0][1]
            rank = max(lora.rank(path) for _, lora in holders)
            a = first.down[path].new_zeros(len(loras), rank, first.down[path].shape[1])
            b = first.up[path].new_zeros(len(loras), first.up[path].shape[0], rank)
            for e, lora in holders:
                a[e, : lora.rank(path)] = lora.down[path]
                b[e, :, : lora.rank(path)] = lora.up[path] * lora.scale(path)
            down[path], up[path] = a, b
        return cls(tuple(teachers), down, up)

    def factors(self, number: int) -> dict[str, Factors]:
        """A and B of one teacher on each module path."""
        return {path: (down[number], self.up[path][number]) for path, down in self.down.items()}

    def index(self, names: Sequence[str | None]) -> Tensor:
        """(B,) long for :meth:`Roles.use_teachers`: each sample's teacher by name, None for the base (-1)."""
        return torch.tensor([-1 if name is None else self.names.index(name) for name in names])


def _key(path: str) -> str:
    return path.replace(".", "/")  # a dot is not allowed in a parameter's name
