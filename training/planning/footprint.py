"""How many bytes a run holds: on the device by part and phase, in RAM, on the disk. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...collection.lora_weights import Shapes
from ..config import Distillation, OptimizerName
from ..lora import PAPER_TARGETS, targeted
from ..run_config import CHECKPOINTING, Checkpointing, TeacherSampling
from ..ways import APART
from .architecture import LATENT_PIXELS, Architecture, Tokens

GIB = 2**30
FLOAT16, FLOAT32, FLOAT64 = 2, 4, 8
TEXT_TOKENS = 256
"""Of an edit's prompt: about 200 for the source picture as the encoder sees it, the rest words."""
UNFUSED = 6
"""Tensors of a token that a block of core keeps more than a fused one: 0.3 GiB at 1024 x 1024."""
EIGHT_BIT_AT_LEAST, EIGHT_BIT_BLOCK = 4096, 256
"""bitsandbytes keeps smaller tensors' moments in float32, and one float32 scale for so many numbers."""

STUDENT, BOTH, CAST = "student", "student and fake score", "adapters, cast"
Bytes = dict[str, int]


@dataclass(frozen=True)
class Storage:
    """How the frozen base lies on the device."""

    name: str
    weight: float = 2
    """Bytes of a number in a Linear's matrix."""
    item: int = 2
    """Bytes of a number in the model's arithmetic, and of biases and norms."""
    blocks: int | None = None
    """How many blocks are on the device at a time, fetched anew by every pass; None: all, for good."""
    parts: int = 1
    """Over how many devices the blocks are split; each is gathered as a whole when it runs."""

    @property
    def unpacked(self) -> bool:
        """Whether a matrix is made larger each time it is used."""
        return self.weight < self.item


BF16, FP8 = Storage("bf16"), Storage("fp8", weight=1)
STORAGES = (BF16, FP8, Storage("bf16, offloaded", blocks=2), Storage("fp8, offloaded", weight=1, blocks=2))
"""What a run file offers (`base_dtype`, `offload = true`), and a plan chooses from."""
AHEAD = 2
"""Gathered blocks at a time: the one that runs, and the next."""


def sharded(devices: int) -> Storage:
    """`shard = true` on so many devices."""
    return Storage("bf16, sharded", parts=devices)


@dataclass(frozen=True)
class Setting:
    """What a plan may choose: all that changes memory and time but not what is learnt."""

    storage: Storage = BF16
    optimizer: OptimizerName = "adamw"
    micro_batch: int = 1
    target_batch: int = 8
    """Teacher images made at a time: `targets.batch`."""
    checkpointing: Checkpointing = "full"


@dataclass(frozen=True)
class Job:
    """What is to be done, on which model; defaults are those of a run file."""

    config: Distillation = field(default_factory=Distillation)
    architecture: Architecture = field(default_factory=Architecture)
    targets: TeacherSampling = field(default_factory=TeacherSampling)
    side: int = 1024
    """Pixels of the long side."""
    effects: int = 50
    samples: int = 1000
    """Sources of all effects together."""
    general: int = 0
    """Samples of the general stream."""
    missing: int | None = None
    """Teacher images to make; None: all."""
    teacher_rank: int = 32
    """The largest."""
    few_step_rank: int = 0
    """Of the LoRA that the student is sampled on top of; 0: none."""
    gains: float = 0.0
    """Share of the effects whose gains are known from the start (:mod:`..gains`)."""
    extended: Shapes = field(default_factory=dict)
    """Linears of the collection gone on from: a few-step LoRA in it may be on more than the targets."""
    text: int = TEXT_TOKENS
    storages: tuple[Storage, ...] = STORAGES
    """How the base may lie on the device."""
    checkpointing: tuple[Checkpointing, ...] = CHECKPOINTING
    """What the host can do."""
    fused: bool = True
    """Whether the blocks are those of `hosts/fused.py`; others keep more while they are computed again."""
    text_encoder: int = 0
    """Bytes of it that must be on the device, where it takes turns with the base there; 0: it does not."""
    devices: int = 1
    """Processes, each on a device of its own and with a share of every batch."""

    def share(self, micro_batch: int) -> int:
        """Samples of a batch on one device, at most: micro-batches go to one device as a whole."""
        size = replace(self.config, micro_batch=micro_batch).micro_batch_of(self.devices)
        return math.ceil(self.config.batch / size / self.devices) * size

    @property
    def tokens(self) -> Tokens:
        """Of a square picture, the largest of that long side."""
        return Tokens.of(self.side, self.text)

    @property
    def latent(self) -> int:
        """Numbers of a picture's latent."""
        return self.architecture.in_channels // 4 * (self.side // LATENT_PIXELS) ** 2

    @property
    def prompt(self) -> int:
        """Numbers of a prompt's embedding."""
        return self.text * self.architecture.joint_attention_dim

    @property
    def p_effect(self) -> float:
        """Probability of the effect stream."""
        return self.config.p_effect if self.general else 1.0

    @property
    def images(self) -> int:
        """Teacher images to make."""
        return self.samples if self.missing is None else self.missing

    @property
    def path(self) -> int:
        """Bytes of what is kept of the way to a teacher image."""
        return FLOAT16 * min(len(self.config.objective.path_sigmas), self.targets.steps) * self.latent

    @cached_property
    def adapted(self) -> Shapes:
        """Linears that student and fake score adapt. Raises ValueError for a target that the model lacks."""
        return targeted(self.architecture.linears, self.config.targets, "the model") | dict(self.extended)

    @cached_property
    def adapter(self) -> int:
        """Numbers of the student, and of the fake score."""
        return adapter_numbers(self.adapted, self.config.rank)

    @cached_property
    def few_step(self) -> int:
        """Numbers of the few-step LoRA, which is taken to adapt what the student adapts."""
        return adapter_numbers(self.adapted, self.few_step_rank)

    @cached_property
    def taught(self) -> Shapes:
        """Linears that a teacher is taken to adapt."""
        return targeted(self.architecture.linears, PAPER_TARGETS, "the model")

    @cached_property
    def teacher(self) -> int:
        """Numbers of a teacher."""
        return adapter_numbers(self.taught, self.teacher_rank)


def adapter_numbers(shapes: Shapes, rank: int) -> int:
    """Numbers of a LoRA on these Linears."""
    return sum(rank * (out + into) for out, into in shapes.values())


def base_bytes(architecture: Architecture, storage: Storage) -> int:
    """The frozen base on the device."""
    whole = round(architecture.weights * storage.weight) + architecture.other_parameters * storage.item
    layers = architecture.num_layers
    held: float = layers if storage.blocks is None else storage.blocks
    if storage.parts > 1:
        held = AHEAD + layers / storage.parts
    return whole - round(max(0, layers - held) * architecture.block_weights * storage.weight)


def adapter_bytes(shapes: Shapes, config: Distillation, optimizer: OptimizerName) -> Bytes:
    """Float32 masters of the student, and of the fake score where the run needs one, AdamW's states, and the
    gradients of one of them: they are updated in turn."""
    numbers, count = FLOAT32 * adapter_numbers(shapes, config.rank), _trained(config)
    moments = count * moment_bytes(shapes, config.rank, optimizer)
    return {BOTH if count > 1 else STUDENT: count * numbers, "their moments": moments, "gradients": numbers}


def _trained(config: Distillation) -> int:
    """Adapters that are."""
    return 2 if config.needs_fake else 1


def moment_bytes(shapes: Shapes, rank: int, optimizer: OptimizerName) -> int:
    """AdamW's two moments of one adapter."""
    sizes = [rank * side for shape in shapes.values() for side in shape]
    if optimizer == "adamw":
        return 2 * FLOAT32 * sum(sizes)
    return 2 * sum(
        FLOAT32 * n if n < EIGHT_BIT_AT_LEAST else n + FLOAT32 * math.ceil(n / EIGHT_BIT_BLOCK) for n in sizes
    )


def activation_bytes(job: Job, setting: Setting) -> int:
    """What one micro-batch keeps to its backward under the student: all at once without checkpointing; with
    it what the blocks keep, and what is computed again of one block."""
    architecture, tokens = job.architecture, job.tokens
    item, batch = setting.storage.item, setting.micro_batch
    whole = setting.checkpointing != "selective"
    block = batch * architecture.block_activations(tokens, job.config.rank, item, whole)
    if not job.fused:
        block += batch * UNFUSED * architecture.width * tokens.all * item
    if setting.checkpointing == "none":
        return block * architecture.num_layers + batch * architecture.width * tokens.image * item
    return block + _kept_by_blocks(job, setting)


def _kept_by_blocks(job: Job, setting: Setting) -> int:
    """With checkpointing."""
    architecture, item = job.architecture, setting.storage.item
    kept = architecture.block_inputs(job.tokens, item)
    if setting.checkpointing == "selective":
        kept += architecture.attention_kept(job.tokens, item)
    return setting.micro_batch * kept


def device_bytes(job: Job, setting: Setting) -> Mapping[str, Bytes]:
    """Phase -> part -> bytes on the device. The peak is the largest sum of a phase.

    The state that the trainer keeps for cancel and failure, lessons, and the moving average are in RAM.
    """
    tokens, item, batch = job.tokens, setting.storage.item, setting.micro_batch
    architecture = job.architecture
    forward = architecture.forward_transient(tokens, item)
    unpacked = item * architecture.largest_linear if setting.storage.unpacked else 0
    base = {"base": base_bytes(architecture, setting.storage)}
    if job.few_step:
        base["LoRA below the student"] = item * job.few_step
    trained = adapter_bytes(job.adapted, job.config, setting.optimizer)
    held = {**base, **trained, "latents and prompts": _small(job, item, job.share(batch), batch)}
    # In the model's own precision; the next ones arrive while those in use are still there.
    teacher = item * job.teacher
    cast = item if item < FLOAT32 else 0
    kept = activation_bytes(job, setting)
    graph = kept if setting.checkpointing == "none" else _kept_by_blocks(job, setting)
    # Each sample's own, picked out of the stack under the fake score and kept to its backward, at most.
    over_teachers = job.config.needs_fake and job.config.objective.fake_base == "teacher"
    picked = batch * teacher if over_teachers and batch > 1 and setting.checkpointing == "none" else 0
    masters = {name: size for name, size in trained.items() if name in (STUDENT, BOTH)}
    slots = round((setting.storage.blocks or 0) * architecture.block_weights * setting.storage.weight)
    return {
        "encoding": {
            **base,
            **masters,
            "base": slots,  # the rest makes room
            "text encoder": job.text_encoder,
        },
        "backward": {
            **held,
            "teachers": (2 if job.config.imitation_cycles else 1) * batch * teacher + picked,  # and the next
            CAST: 2 * cast * job.adapter,  # for what is computed again, beside what the forward used
            "activations": kept,
            "workspace": batch * architecture.backward_transient(tokens, item) + unpacked,
        },
        "scoring": {
            **held,
            "teachers": 2 * batch * teacher,
            CAST: cast * _trained(job.config) * job.adapter,
            "activations": graph,
            "workspace": batch * forward + unpacked,
        },
        "update": {
            **held,
            "teachers": batch * teacher,
        },
        "teacher images": {
            **base,
            **masters,
            "latents and prompts": _small(job, item, setting.target_batch, setting.target_batch),
            "teachers": 2 * min(2, setting.target_batch) * teacher,  # images are made in the order of effects
            "workspace": setting.target_batch * forward + unpacked,
        },
    }


def _small(job: Job, item: int, drawn: int, batch: int) -> int:
    """Of each sample that is drawn, three prompts, source, target and the rollout's result; of each in the
    batch, about seven latents more (noise, states, scores) and four in float64 for the loss."""
    waiting = item * 3 * job.prompt + FLOAT32 * 3 * job.latent
    return drawn * waiting + batch * (FLOAT32 * 7 + FLOAT64 * 4) * job.latent


def ram_bytes(job: Job, setting: Setting) -> Bytes:
    """Part -> bytes in RAM, beside the process itself and the text encoder; at most."""
    c = job.config
    # the new copy is made before the old one goes
    state = 2 * kept_bytes(job, setting) + (FLOAT32 * job.adapter if c.ema else 0) + ways_bytes(job)
    architecture, storage = job.architecture, setting.storage
    prompts = storage.item * (3 * job.samples + 2 * job.general) * job.prompt
    latents = FLOAT32 * (2 * job.samples + job.general) * job.latent
    waiting = 0 if storage.blocks is None else architecture.num_layers
    if storage.blocks is not None and storage.blocks > AHEAD:  # more than pass through: they stay
        waiting -= storage.blocks
    return {
        "offloaded base": round(waiting * architecture.block_weights * storage.weight),
        "state of the last cycle": state,
        "teachers": min(c.bank_ram, job.effects) * locked_bytes(job.taught, job.teacher_rank, storage.item),
        "lessons": prompts + latents + job.images * job.path,
    }


def locked_bytes(shapes: Shapes, rank: int, item: int) -> int:
    """A LoRA's matrices in page-locked memory, of which PyTorch gives each a power of two."""
    return sum(1 << (rank * side * item - 1).bit_length() for shape in shapes.values() for side in shape)


def kept_bytes(job: Job, setting: Setting) -> int:
    """What is copied after a cycle: what is trained, its moments, the moving average."""
    moments = moment_bytes(job.adapted, job.config.rank, setting.optimizer)
    average = FLOAT32 * job.adapter if job.config.ema else 0
    return _trained(job.config) * (FLOAT32 * job.adapter + moments) + average


def ways_bytes(job: Job) -> int:
    """The ways that go on, at most, which a state holds without a copy."""
    return FLOAT32 * APART * job.config.batch * job.latent if job.config.imitation_cycles else 0


def disk_bytes(job: Job, setting: Setting) -> Bytes:
    """Part -> bytes in the run's folder."""
    return {
        "teacher images": job.images * (FLOAT32 * job.latent + job.path),
        # while it is written the earlier one is still there
        "state": 2 * (kept_bytes(job, setting) + ways_bytes(job)),
        "collection": 2 * (job.adapter + job.few_step),
    }
