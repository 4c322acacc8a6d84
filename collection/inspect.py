"""What `collectionlora inspect` and `convert` do: describe a LoRA or collection, change its layout."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from .catalogue import HEADER_KEY, Catalogue
from .errors import CollectionError
from .layouts import check_layout, open_source, read_lora, write_lora
from .lora_weights import LoraWeights
from .names import block_index, is_qwen_image_module

_QWEN_IMAGE_WIDTH, _QWEN_IMAGE_BLOCKS = 3072, 60


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Everything a LoRA or collection says of itself, as plain JSON values; `render` makes it readable.

    The whole file is read and checked. Raises CollectionError (or LoraFormatError) with reason and remedy.
    """
    source = open_source(path)
    weights = read_lora(path)
    tensors = [*weights.down.values(), *weights.up.values()]
    description: dict[str, Any] = {
        "file": str(source.path),
        "kind": "collection" if HEADER_KEY in source.metadata else "lora",
        "bytes": source.path.stat().st_size,
        "layout": source.layout,
        "modules": len(weights.down),
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtypes": _count(str(tensor.dtype).removeprefix("torch.") for tensor in tensors),
        "ranks": _count(str(weights.rank(module)) for module in weights.down),
        "scales": _count(f"{weights.scale(module):.6g}" for module in weights.down),
        "targets": _count(_target(module) for module in weights.down),
        "base": _base(weights),
    }
    if HEADER_KEY in source.metadata:
        catalogue = Catalogue.from_header(source.metadata, str(source.path))
        description["catalogue"] = _catalogue(catalogue)
        if not _on_qwen_image(weights):  # the tensors tell nothing of another base
            description["base"]["name"] = str(catalogue.base.get("name", "unknown"))
    return description


def render(description: dict[str, Any]) -> str:
    """Lines of text for a person, from what `describe` returned."""
    base = description["base"]
    lines = [
        f"{description['file']}",
        f"  {description['kind']} in {description['layout']} layout, {_megabytes(description['bytes'])}",
        f"  {description['modules']} modules in {base['blocks']} blocks,"
        f" {description['parameters']:,} parameters ({_join(description['dtypes'])})",
        f"  rank {_join(description['ranks'])}; scale {_join(description['scales'])}",
        f"  base: {base['name']}",
    ]
    if catalogue := description.get("catalogue"):
        effects = catalogue["effects"]
        thumbnails = catalogue["thumbnails"]
        lines.append(f"  {len(effects)} effects at {catalogue['nfe']} steps, {thumbnails} thumbnails")
        lines += [f"    {effect['name']}: {effect['title']}: {_line(effect['prompt'])}" for effect in effects]
        lines += [f"  training: {key} = {_line(value)}" for key, value in catalogue["training"].items()]
    return "\n".join(lines)


def convert(src: str | os.PathLike[str], dst: str | os.PathLike[str], layout: str) -> None:
    """Write the LoRA `src` (any layout) to `dst` as "comfy", "peft" (a folder) or "kohya", bit for bit.

    A collection keeps its catalogue, the notes of other programs in the header are kept too.
    Raises CollectionError or LoraFormatError; `dst` is then as it was.
    """
    check_layout(layout)
    source = open_source(src)
    target = Path(dst) / "adapter_model.safetensors" if layout == "peft" else Path(dst)
    if target.exists() and target.samefile(source.path):
        raise CollectionError(f"{dst}: source and destination are the same; name another destination")
    if layout != "peft" and (Path(dst).is_dir() or Path(dst).suffix != ".safetensors"):
        raise CollectionError(
            f"{dst}: the {layout} layout is a single file; name one that ends in .safetensors"
        )
    # alpha moves into the new layout's own place; the old note would be a second opinion
    notes = {
        key: value for key, value in source.metadata.items() if key not in ("format", "lora_adapter_metadata")
    }
    weights = read_lora(src)
    if layout == "kohya" and not _on_qwen_image(weights):
        raise CollectionError(
            f"{src}: the kohya layout does not keep the names of modules, and its base is no Qwen-Image; "
            "convert it to comfy or peft"
        )
    write_lora(weights, dst, layout, notes)


def _on_qwen_image(weights: LoraWeights) -> bool:
    return all(map(is_qwen_image_module, weights.down))


def _base(weights: LoraWeights) -> dict[str, Any]:
    """What the tensors themselves tell about the base."""
    blocks = {index for module in weights.down if (index := block_index(module)) is not None}
    widths = {down.shape[1] for module, down in weights.down.items() if module.endswith("attn.to_q")}
    width = widths.pop() if len(widths) == 1 else None
    depth = max(blocks) + 1 if blocks else 0
    if width == _QWEN_IMAGE_WIDTH and depth <= _QWEN_IMAGE_BLOCKS:
        name = "Qwen-Image / Qwen-Image-Edit"
    else:
        name = "Qwen-Image architecture" + (f" of width {width}" if width else "")
    return {"name": name, "width": width, "blocks": len(blocks)}


def _catalogue(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "version": catalogue.version,
        "nfe": len(catalogue.sigmas) - 1,
        "sigmas": list(catalogue.sigmas),
        "base": catalogue.base,
        "training": catalogue.training,
        "thumbnails": sum(effect.thumbnail is not None for effect in catalogue.effects),
        "effects": [
            {
                "name": effect.name,
                "title": effect.title,
                "tag": effect.tag,
                "prompt": effect.prompt,
                "category": effect.category,
                "thumbnail_bytes": len(effect.thumbnail or b""),
            }
            for effect in catalogue.effects
        ],
    }


def _target(module: str) -> str:
    """A module without its block number: `attn.to_q`."""
    return module if block_index(module) is None else module.split(".", 2)[2]


def _count(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _join(counts: dict[str, int]) -> str:
    """`16` when all are equal, else `16 (56x), 8 (4x)`."""
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{key} ({n}x)" for key, n in counts.items())


def _line(value: Any) -> str:
    return str(value).replace("\n", " ")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"
