"""Key sets of published LoRAs for Qwen-Image-Edit: 60 blocks, full widths, no data."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from collectionlora.collection.layouts import open_source, read_lora

WIDTH, BLOCKS, RANK = 3072, 60, 16
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
SHAPES: dict[str, tuple[int, int]] = {}
for _block in range(BLOCKS):
    _at = f"transformer_blocks.{_block}"
    SHAPES |= {f"{_at}.attn.{name}": (WIDTH, WIDTH) for name in ATTENTION}
    for _stream in ("img", "txt"):
        SHAPES[f"{_at}.{_stream}_mlp.net.0.proj"] = (4 * WIDTH, WIDTH)
        SHAPES[f"{_at}.{_stream}_mlp.net.2"] = (WIDTH, 4 * WIDTH)
        SHAPES[f"{_at}.{_stream}_mod.1"] = (6 * WIDTH, WIDTH)

Key = Callable[[str, str], str]
AB = {"down": "lora_A", "up": "lora_B"}


def attention_only(path: str) -> bool:
    return ".attn.to_" in path and "to_add_out" not in path


RELEASES: dict[str, tuple[str, Key, Callable[[str], bool], bool]] = {
    # name: (layout, key of a module's half, which modules, with alphas)
    "ai-toolkit": ("comfy", lambda m, p: f"diffusion_model.{m}.{AB[p]}.weight", lambda _: True, False),
    "musubi": (
        "kohya",
        lambda m, p: f"lora_unet_{m.replace('.', '_')}.lora_{p}.weight",
        lambda _: True,
        True,
    ),
    "diffusers": ("diffusers", lambda m, p: f"transformer.{m}.{AB[p]}.weight", attention_only, False),
    "official": (
        "peft",
        lambda m, p: f"base_model.model.{m}.{AB[p]}.weight",
        lambda _: True,
        False,
    ),
}


def sparse(path: Path, key: Key, modules: list[str], alphas: bool) -> None:
    """A .safetensors whose header is real and whose data is one hole of zeros."""
    header: dict[str, object] = {}
    end = 0

    def add(name: str, shape: list[int]) -> None:
        nonlocal end
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size

    for module in modules:
        out, into = SHAPES[module]
        add(key(module, "down"), [RANK, into])
        add(key(module, "up"), [out, RANK])
        if alphas:
            add(f"lora_unet_{module.replace('.', '_')}.alpha", [])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize("release", list(RELEASES))
def test_a_published_lora_is_read_module_by_module(release: str, tmp_path: Path) -> None:
    layout, key, chosen, alphas = RELEASES[release]
    modules = [module for module in SHAPES if chosen(module)]
    path = tmp_path / "release.safetensors"
    sparse(path, key, modules, alphas)
    source = open_source(path)
    assert source.layout == layout
    with pytest.warns(UserWarning, match="read as alpha = rank") if layout == "peft" else nullcontext():
        weights = read_lora(path, SHAPES, check_finite=False)
    assert list(weights.down) == list(weights.up)
    assert set(weights.down) == set(modules)
    for module in (modules[0], modules[-1]):
        out, into = SHAPES[module]
        assert tuple(weights.down[module].shape) == (RANK, into)
        assert tuple(weights.up[module].shape) == (out, RANK)
        assert weights.alpha[module] == (0.0 if alphas else RANK)
