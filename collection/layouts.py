"""Readers and writers of LoRA files in every layout that Qwen-Image LoRAs are shared in.

Read: diffusers (`transformer.` and bare), ComfyUI / ai-toolkit (`diffusion_model.`), kohya (`lora_unet_` with
underscores), PEFT (`base_model.model.`), DiffSynth (`pipe.dit.`), each with `lora_A`/`lora_B` or
`lora_down`/`lora_up`; folders with an adapter_config (PEFT, and the paper's teachers with `lora_config/`);
the paper's `model.pt`.
Written: ComfyUI, PEFT and kohya. Reading what was written gives the same bits back.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .atomic import atomic_write
from .catalogue import HEADER_KEY
from .errors import LoraFormatError
from .lora_weights import LoraWeights, Shapes
from .names import (
    Key,
    ModuleNames,
    block_index,
    foreign_architecture,
    layout_of,
    natural_order,
    of_text_encoder,
    parse_key,
    unsupported,
)
from .peft_config import AdapterConfig, config_from_metadata, find_config, read_config, to_config
from .tensors import TensorFile, read_checkpoint, save_tensors, write_tensors

LAYOUTS = ("comfy", "peft", "kohya")
"""Layouts that can be written."""

_READ = "diffusers, ComfyUI/ai-toolkit, kohya, PEFT"
_FOLDER_FILES = (
    "model.safetensors",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
    "model.pt",
)


@dataclass(frozen=True)
class Source:
    """A LoRA file found on the disk, before its tensors are read."""

    path: Path
    keys: list[str]
    get: Callable[[str], Tensor]
    metadata: dict[str, str]
    in_folder: bool = False
    """Whether it was found as the weights of a folder that was named."""

    @property
    def layout(self) -> str:
        """Layout of the first key: comfy, diffusers, bare, kohya, peft or diffsynth."""
        key = parse_key(self.keys[0]) if self.keys else None
        return layout_of(key.module) if key else "unknown"


def open_source(path: str | os.PathLike[str]) -> Source:
    """Find the weights of a LoRA file or folder and open them. Raises LoraFormatError."""
    file = weights_file(Path(path))
    in_folder = file != Path(path)
    if file.suffix in (".pt", ".pth", ".bin"):
        tensors = read_checkpoint(file)
        return Source(file, list(tensors), tensors.__getitem__, {}, in_folder)
    opened = TensorFile(file)
    return Source(file, list(opened.header.tensors), opened.get, opened.header.metadata, in_folder)


def weights_file(path: Path) -> Path:
    """The file that holds the weights of a LoRA file (itself) or folder. Raises LoraFormatError."""
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} .safetensors files" if found else "no weights"
    raise LoraFormatError(
        f"{path}: the folder has {what}, expected one of {', '.join(_FOLDER_FILES)}; name the file itself"
    )


def read_lora(
    path: str | os.PathLike[str], shapes: Shapes | None = None, *, check_finite: bool = True
) -> LoraWeights:
    """Read a LoRA from a file or folder in any layout; the layout is recognised from the keys.

    path: .safetensors, `model.pt`, or a folder holding one.
    shapes: module path -> (out, in) of *all* Linears of the base; names and shapes are checked against it.
        Without it the names must be those of a Qwen-Image transformer, of any depth and width; a collection
        may be one on another base.
    check_finite: look at every value for NaN and infinity, which reads the whole file; without, tensors of a
        .safetensors stay memory-mapped until they are used.

    Tensors keep their dtype and bits: down (r, in), up (out, r). alpha is, in this order: the `.alpha`
    tensor, diffusers' metadata in the header, the adapter_config that belongs to the file (`files_of`), else
    the rank (scale 1), in the PEFT layout with a warning. Modules are in natural order.
    Raises LoraFormatError naming the file, the first offending key, what was expected, and the remedy.
    """
    source = open_source(path)
    names = ModuleNames(_own_modules(source) if shapes is None else shapes)
    parts = _collect(source, names, shapes)
    config = _config_of(source)
    weights = LoraWeights()
    for module in natural_order(parts):
        keys = parts[module]
        down, up = (_matrix(source, keys, part) for part in ("down", "up"))
        _check_shapes(source, keys, down, up, shapes[module] if shapes is not None else None, shapes)
        if check_finite:
            for part, tensor in (("down", down), ("up", up)):
                _check_finite(source.path, keys[part].text, tensor)
        weights.down[module], weights.up[module] = down, up
        weights.alpha[module] = _alpha(source, keys, module, down.shape[0], config)
    return weights


def _own_modules(source: Source) -> set[str] | None:
    """Module paths of a collection, which names them as its base does; None of another LoRA, and in the kohya
    layout, whose names do not tell."""
    if HEADER_KEY not in source.metadata or source.layout == "kohya":
        return None
    prefix = "base_model.model." if source.layout == "peft" else "diffusion_model."
    return {key.module.removeprefix(prefix) for key in filter(None, map(parse_key, source.keys))}


def _collect(source: Source, names: ModuleNames, shapes: Shapes | None) -> dict[str, dict[str, Key]]:
    """module path -> part -> key, every key of the file accounted for."""
    parsed = [parse_key(text) for text in source.keys]
    if not any(parsed) and not any(unsupported(text) or of_text_encoder(text) for text in source.keys):
        first = f"its first key is '{source.keys[0]}'" if source.keys else "it is empty"
        raise LoraFormatError(f"{source.path}: no LoRA in a known layout ({first}); layouts read: {_READ}")
    parts: dict[str, dict[str, Key]] = {}
    adapters: set[str | None] = set()
    text_encoder = next(filter(of_text_encoder, source.keys), None)
    for text, key in zip(source.keys, parsed, strict=True):
        if of_text_encoder(text):
            continue  # refused below, unless the rest of the file is for another model altogether
        if refused := unsupported(text):
            what, remedy = refused
            raise LoraFormatError(f"{source.path}: {what} (key '{text}'), which is not supported; {remedy}")
        if key is None:
            raise LoraFormatError(
                f"{source.path}: key '{text}' is not part of a LoRA in a known layout; layouts read: {_READ}"
            )
        module = names.resolve(key.module)
        if module is None:
            raise _foreign(source, text, shapes)
        if key.part in parts.setdefault(module, {}):
            other = parts[module][key.part].text
            raise LoraFormatError(
                f"{source.path}: '{other}' and '{text}' are the same module; keep one adapter a file"
            )
        parts[module][key.part] = key
        adapters.add(key.adapter if key.part != "alpha" else None)
    if text_encoder is not None:
        raise LoraFormatError(
            f"{source.path}: a LoRA with text-encoder weights (key '{text_encoder}'), which is not supported;"
            " train it again without the text encoder"
        )
    if len(adapters - {None}) > 1:
        found = ", ".join(sorted(str(name) for name in adapters - {None}))
        raise LoraFormatError(f"{source.path}: holds several adapters ({found}); save one adapter a file")
    for keys in parts.values():
        if missing := {"down", "up"} - keys.keys():
            have = next(iter(keys.values())).text
            raise LoraFormatError(
                f"{source.path}: '{have}' has no {missing.pop()} matrix beside it; fetch the file again"
            )
    return parts


def describe_base(shapes: Shapes | None) -> str:
    """The base expected, in words for an error message."""
    if shapes is None:
        return "Qwen-Image-Edit (transformer_blocks.N.attn.to_q, ...)"
    blocks = {index for module in shapes if (index := block_index(module)) is not None}
    example = "transformer_blocks.0.attn.to_q"
    if not blocks or example not in shapes:
        return f"the base with modules such as '{next(iter(shapes), '')}'"
    return f"Qwen-Image-Edit of width {shapes[example][1]} with {len(blocks)} blocks"


def _foreign(source: Source, key: str, shapes: Shapes | None) -> LoraFormatError:
    family = foreign_architecture(key)
    looks = f", it looks like a LoRA for {family}" if family else ""
    return LoraFormatError(
        f"{source.path}: key '{key}' names a module the base does not have{looks}; the base expected is"
        f" {describe_base(shapes)}: use a LoRA trained on it"
    )


def _matrix(source: Source, keys: dict[str, Key], part: str) -> Tensor:
    tensor = source.get(keys[part].text)
    if not tensor.is_floating_point():
        raise LoraFormatError(
            f"{source.path}: '{keys[part].text}' is {tensor.dtype}, expected floating point; save it so"
        )
    return tensor


def _check_shapes(
    source: Source,
    keys: dict[str, Key],
    down: Tensor,
    up: Tensor,
    want: tuple[int, int] | None,
    shapes: Shapes | None,
) -> None:
    found_down, found_up = tuple(down.shape), tuple(up.shape)
    base = f"; the base expected is {describe_base(shapes)}"
    if down.ndim != 2 or not min(found_down) or (want is not None and found_down[1] != want[1]):
        expected = f"(rank, {want[1]})" if want is not None else "(rank, in)"
        raise LoraFormatError(
            f"{source.path}: '{keys['down'].text}' has shape {found_down}, expected {expected}{base}"
        )
    rank = found_down[0]
    if (
        up.ndim != 2
        or not min(found_up)
        or found_up[1] != rank
        or (want is not None and found_up[0] != want[0])
    ):
        expected = f"({want[0]}, {rank})" if want is not None else f"(out, {rank})"
        raise LoraFormatError(
            f"{source.path}: '{keys['up'].text}' has shape {found_up}, expected {expected}{base}"
        )


def _is_finite(tensor: Tensor) -> bool:
    # torch has no isfinite for 8-bit floats
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return bool(torch.isfinite(values).all())


def _check_finite(path: Path, key: str, tensor: Tensor) -> None:
    if not _is_finite(tensor):
        raise LoraFormatError(
            f"{path}: '{key}' holds NaN or infinite values: its training failed; use an earlier save"
        )


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The files that `read_lora` reads: the weights, and the adapter_config that belongs to them if there is
    one. Raises LoraFormatError."""
    source = open_source(path)
    return [source.path, *filter(None, [_config_beside(source)])]


def _config_beside(source: Source) -> Path | None:
    """In a folder of many LoRAs a stray adapter_config belongs to none of them but one of PEFT's own name."""
    ours = source.in_folder or source.path.name in (*_FOLDER_FILES, "adapter_model.bin")
    alone = source.layout == "peft" and len(list(source.path.parent.glob("*.safetensors"))) == 1
    noted = "lora_adapter_metadata" in source.metadata
    return find_config(source.path) if (ours or alone) and not noted else None


def _config_of(source: Source) -> AdapterConfig | None:
    if found := _config_beside(source):
        return read_config(found)
    return config_from_metadata(source.metadata, str(source.path))


def _alpha(
    source: Source, keys: dict[str, Key], module: str, rank: int, config: AdapterConfig | None
) -> float:
    if "alpha" not in keys:
        if config is None and source.layout == "peft":
            # published files of this layout came without it, and meant this; a guess none the less
            warnings.warn(
                f"{source.path}: PEFT keeps the strength of a LoRA in an adapter_config.json, which is not"
                " there: read as alpha = rank; if it has another, put the two into a folder of their own",
                stacklevel=2,
            )
        return config.alpha_of(module, rank) if config else float(rank)
    tensor = source.get(keys["alpha"].text)
    value = float(tensor) if tensor.numel() == 1 else math.nan
    if not math.isfinite(value):
        raise LoraFormatError(
            f"{source.path}: '{keys['alpha'].text}' is not one finite number; fetch the file again"
        )
    return value


def write_lora(
    weights: LoraWeights, path: str | os.PathLike[str], layout: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA atomically, bit for bit. `path` is a .safetensors file; for "peft" a folder.

    layout: "comfy" (`diffusion_model.<path>.lora_A.weight`; `lora_down` and `.alpha` only where an alpha is
        not the rank, so that programs which know no alpha agree), "peft" (adapter_model.safetensors and
        adapter_config.json) or "kohya".
    metadata: text entries for the header.
    """
    check_layout(layout)
    check_weights(weights)
    extra = dict(metadata or {})
    if layout == "comfy":
        write_tensors(path, comfy_tensors(weights), extra)
    elif layout == "kohya":
        write_tensors(path, _kohya_tensors(weights), extra)
    else:
        folder = Path(path)
        if folder.is_file():
            raise LoraFormatError(f"{folder}: is a file; the PEFT layout is a folder: name one")
        # Both files are complete before either replaces an old one.
        with (
            atomic_write(folder / "adapter_config.json") as config,
            atomic_write(folder / "adapter_model.safetensors") as file,
        ):
            config.write_text(json.dumps(to_config(weights), indent=2) + "\n", encoding="utf-8")
            save_tensors(file, dict(_pairs(weights, "base_model.model.", "lora_A", "lora_B")), extra)


def check_layout(layout: str) -> None:
    """Raise LoraFormatError unless `layout` is one that can be written."""
    if layout not in LAYOUTS:
        raise LoraFormatError(f"unknown layout '{layout}'; layouts written: {', '.join(LAYOUTS)}")


def check_weights(weights: LoraWeights) -> None:
    """Raise LoraFormatError unless every module has matching down, up and alpha, all finite."""
    if not weights.down:
        raise LoraFormatError("the LoRA has no modules; nothing to write")
    for module, down in weights.down.items():
        up, alpha = weights.up.get(module), weights.alpha.get(module)
        if up is None or alpha is None:
            raise LoraFormatError(f"'{module}' lacks its up matrix or alpha")
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise LoraFormatError(
                f"'{module}': down {tuple(down.shape)} and up {tuple(up.shape)} do not fit together"
            )
        if not math.isfinite(alpha):
            raise LoraFormatError(f"'{module}': alpha is {alpha}")
        for part, tensor in (("down", down), ("up", up)):
            if not _is_finite(tensor):
                raise LoraFormatError(f"'{module}': {part} holds NaN or infinite values; nothing was written")
    if extra := (weights.up.keys() | weights.alpha.keys()) - weights.down.keys():
        raise LoraFormatError(f"'{sorted(extra)[0]}' has no down matrix")


def comfy_tensors(weights: LoraWeights) -> dict[str, Tensor]:
    """The tensors of the layout that ComfyUI and diffusers load, also that of the collection file.

    With an alpha that is not the rank, all are named `lora_down` and `lora_up`: beside `lora_A` diffusers of
    2025 drops it.
    """
    prefix = "diffusion_model."
    alphas = {
        f"{prefix}{module}.alpha": _scalar(alpha)
        for module, alpha in weights.alpha.items()
        if alpha != weights.rank(module)
    }
    names = ("lora_down", "lora_up") if alphas else ("lora_A", "lora_B")
    return dict(_pairs(weights, prefix, *names)) | alphas


def _pairs(weights: LoraWeights, prefix: str, down: str, up: str) -> Iterable[tuple[str, Tensor]]:
    for module in weights.down:
        yield f"{prefix}{module}.{down}.weight", weights.down[module]
        yield f"{prefix}{module}.{up}.weight", weights.up[module]


def _kohya_tensors(weights: LoraWeights) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in weights.down:
        name = f"lora_unet_{module.replace('.', '_')}"
        if f"{name}.alpha" in tensors:
            raise LoraFormatError(
                f"'{module}' shares the kohya name '{name}' with another module; use another layout"
            )
        tensors[f"{name}.lora_down.weight"] = weights.down[module]
        tensors[f"{name}.lora_up.weight"] = weights.up[module]
        tensors[f"{name}.alpha"] = _scalar(weights.alpha[module])
    return tensors


def _scalar(alpha: float) -> Tensor:
    single = torch.tensor(alpha, dtype=torch.float32)
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)
