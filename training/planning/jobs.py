"""The job that a run file describes, for its plan: no model is loaded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from ...collection.errors import LoraFormatError
from ...collection.layouts import read_lora
from ...collection.lora_weights import Shapes
from ...collection.tensors import read_header
from ...pocket import TRANSFORMER
from ...pocket.text import TOKENS
from ..config import ConfigError, distillation
from ..extend import read_extended
from ..run_config import Run
from .architecture import Architecture
from .footprint import Job, Storage

POCKET_SIDE = 128
LAYER = re.compile(r"^model\.(?:language_model\.)?layers\.(\d+)\.")
"""Names of a language model's layers, as older and newer files have them."""
LIGHTNING_RANK = 64
"""Of the few-step LoRA below a student that only imitates, where nobody has named one."""
TEXT_ENCODER = 4_466_000_000
"""Bytes of Qwen2.5-VL-7B in bfloat16 with two of its layers, where no base is named."""
POCKET_BASE = Storage("float32", weight=4, item=4)


def job_of(run: Run) -> Job:
    """What `run` does on the command line.

    Raises:
        ConfigError: no base in its folder.
        ValueError: it holds no configuration of a Qwen-Image transformer.
        LoraFormatError: as :func:`job_on`.
    """
    run.require_base()
    folder = Path(run.base)
    if run.base == "pocket" or not (folder / "model_index.json").is_file():
        job = job_on(Architecture.of(TRANSFORMER), run)
        return replace(job, side=POCKET_SIDE, text=TOKENS, storages=(POCKET_BASE,), checkpointing=("none",))
    job = job_on(Architecture.of(_configuration(folder / "transformer")), run)
    return replace(job, text_encoder=_text_encoder(folder / "text_encoder"))


def job_of_preset(preset: str, effects: int, pictures: int, general: int) -> Job:
    """A preset on the paper's model, without a run file; `pictures` of each effect.

    Raises:
        ConfigError: an unknown preset, or one that goes on from a collection.
    """
    config = distillation(preset=preset)
    if config.few_step_alone:
        raise ConfigError(f"--preset {preset} goes on from a collection: name a run file, with it")
    return Job(
        config,
        effects=effects,
        samples=effects * pictures,
        general=general,
        missing=None if config.learns_images else 0,
        few_step_rank=LIGHTNING_RANK if config.imitation_cycles and not config.matching_cycles else 0,
        text_encoder=TEXT_ENCODER,
    )


def job_on(architecture: Architecture, run: Run) -> Job:
    """What `run` does on a model of this architecture; of teachers only the headers are read.

    Raises:
        LoraFormatError: a teacher that is missing, damaged or for another base.
        ConfigError, CollectionError: as `read_extended`, whose collection is read whole, and as
            `require_few_steps`.
    """
    run, first = read_extended(run, architecture.linears)
    run.require_few_steps()
    shapes = architecture.linears
    files = [effect.lora_path for effect in run.lists.effects.values()]
    samples = run.lists.samples
    return Job(
        run.distill,
        architecture,
        run.targets,
        run.long_side,
        effects=len(files),
        samples=len(samples),
        general=len(run.lists.general),
        missing=sum(samples[i].base_pred_image is None for i in run.samples_with_images),
        teacher_rank=_largest_rank(files, shapes),
        few_step_rank=_few_step_rank(run, shapes),
        gains=len(run.gains) / len(files),
        extended={path: shapes[path] for path in first.down} if first is not None else {},
    )


def _text_encoder(folder: Path) -> int:
    """Bytes of a text encoder with two of its layers, the least that is on the device while it works; those
    of the published one where its files are not there yet."""
    rest, layers = 0, Counter[str]()
    try:
        headers = [read_header(file) for file in folder.glob("*.safetensors")]
    except LoraFormatError:
        headers = []
    if not headers:
        return TEXT_ENCODER
    for header in headers:
        for name, tensor in header.tensors.items():
            start, end = tensor["data_offsets"]
            layer = LAYER.search(name)
            if layer:
                layers[layer[1]] += end - start
            else:
                rest += end - start
    return rest + 2 * max(layers.values(), default=0)


def _few_step_rank(run: Run, shapes: Shapes) -> int:
    """0 without a few-step LoRA below the student."""
    if run.below is not None:
        return max(map(len, run.below.down.values()))
    return _largest_rank([run.few_step], shapes) if run.few_step else 0


def _largest_rank(files: Iterable[Path], shapes: Shapes) -> int:
    """The largest rank of any module of these LoRAs."""
    loras = (read_lora(file, shapes, check_finite=False) for file in files)
    return max((lora.rank(path) for lora in loras for path in lora.down), default=1)


def _configuration(folder: Path) -> Mapping[str, object]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); base must name a whole Qwen-Image-Edit"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: no configuration; fetch this part again")
    return content
