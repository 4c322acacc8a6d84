"""Names: the Linears of a Qwen-Image transformer, and the keys that LoRA files give them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

BLOCK_MODULES = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "img_mod.1",
    "txt_mod.1",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)
TOP_MODULES = (
    "img_in",
    "txt_in",
    "proj_out",
    "norm_out.linear",
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
)
_FLAT_BLOCK = {name.replace(".", "_"): name for name in BLOCK_MODULES}
_FLAT_TOP = {name.replace(".", "_"): name for name in TOP_MODULES}
_BLOCK = re.compile(r"transformer_blocks\.(\d{1,4})\.(.+)")
_FLAT = re.compile(r"transformer_blocks_(\d{1,4})_(.+)")

# A prefix says which program wrote the key; several may be stacked (`model.base_model.model.`).
DOTTED_PREFIXES = {
    "base_model.model.": "peft",
    "diffusion_model.": "comfy",
    "transformer.": "diffusers",
    "pipe.dit.": "diffsynth",
    "dit.": "diffsynth",
    "model.": "bare",
}
FLAT_PREFIXES = {"lora_unet_": "kohya", "lora_transformer_": "kohya", "lycoris_": "kohya"}
_WRAPPERS = re.compile(r"\b(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")

_ADAPTER = r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.weight)?"
_PARTS = {
    "down": re.compile(rf"(?P<module>.+)\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down){_ADAPTER}"),
    "up": re.compile(rf"(?P<module>.+)\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up){_ADAPTER}"),
    "alpha": re.compile(r"(?P<module>.+)\.alpha"),
}

_EXPORT = (
    "export it again as a plain LoRA, or extract one (ComfyUI: node 'Extract and Save Lora', bias_diff off, a"
    " rank of 64 or more)"
)
_UNSUPPORTED = (
    (r"\.lokr_", "a LoKr (Kronecker) adapter, not a LoRA", _EXPORT),
    (r"\.hada_", "a LoHa (Hadamard) adapter, not a LoRA", _EXPORT),
    (r"\.(oft_|boft_)", "an OFT adapter, not a LoRA", _EXPORT),
    (r"\.(dora_scale|lora_magnitude_vector)\b", "a DoRA: magnitudes beside the LoRA", _EXPORT),
    (r"\.lora_mid\b", "a LoCon with a Tucker core, not a plain LoRA", _EXPORT),
    (r"\.(a1|a2|b1|b2)\.weight$", "a GLoRA, not a plain LoRA", _EXPORT),
    (r"\.(diff|diff_b|w_norm|b_norm|set_weight)$", "a LoRA with full weight differences", _EXPORT),
    (r"\.lora_(A|B|up|down)(\.\w+)?\.bias$", "a LoRA with biases", "train it again without lora_bias"),
    (r"\.lora_embedding_", "a LoRA of an embedding", "train it again without embedding layers"),
    (r"modules_to_save", "a LoRA with fully trained modules", "train it again without modules_to_save"),
)
_TEXT_ENCODER = re.compile(r"(lora_te|text_encoders?[._]|te[12]?_)")
_FOREIGN = (
    (r"down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block", "Stable Diffusion 1/2/XL"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "FLUX or HunyuanVideo"),
    (r"joint_blocks", "Stable Diffusion 3"),
    (r"blocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
    (r"layers[._]\d+[._](attention|adaLN_modulation|feed_forward)", "Lumina or Z-Image"),
    (r"layers[._]\d+[._](self_attn|mlp)", "a language model"),
)


@dataclass(frozen=True)
class Key:
    """One parsed key of a LoRA file: the module as the file writes it, and which part of the LoRA it is."""

    text: str
    module: str
    part: str
    """"down", "up" or "alpha"."""
    adapter: str | None
    """PEFT's adapter name where the key carries one (`lora_A.default.weight`)."""


def parse_key(text: str) -> Key | None:
    """Split a key into module and part, or None when it is no key of a plain LoRA."""
    cleaned = _WRAPPERS.sub("", text)
    for part, pattern in _PARTS.items():
        if match := pattern.fullmatch(cleaned):
            return Key(text, match["module"], part, match.groupdict().get("adapter"))
    return None


def layout_of(module: str) -> str:
    """The layout a module name of a file belongs to: comfy, diffusers, bare, kohya, peft or diffsynth."""
    found = "bare"
    while True:
        for prefix, layout in (DOTTED_PREFIXES | FLAT_PREFIXES).items():
            if module.startswith(prefix):
                module, found = module[len(prefix) :], layout if found == "bare" else found
                break
        else:
            return found


class ModuleNames:
    """Resolves the module names of files to module paths of one base.

    With `modules` the base's own are the only ones known; without, every Linear of a Qwen-Image transformer
    of any depth is.
    """

    def __init__(self, modules: Collection[str] | None = None) -> None:
        self._known = None if modules is None else set(modules)
        self._flat = {} if modules is None else {name.replace(".", "_"): name for name in modules}

    def resolve(self, module: str) -> str | None:
        """Module path for a file's module name, or None when the base has no such module."""
        if self._is_known(module):
            return module
        for prefix in FLAT_PREFIXES:
            if module.startswith(prefix):
                return self._resolve_flat(module[len(prefix) :])
        for prefix in DOTTED_PREFIXES:
            if module.startswith(prefix):
                return self.resolve(module[len(prefix) :])
        return None

    def _is_known(self, path: str) -> bool:
        return is_qwen_image_module(path) if self._known is None else path in self._known

    def _resolve_flat(self, flat: str) -> str | None:
        if self._known is not None:
            return self._flat.get(flat)
        if match := _FLAT.fullmatch(flat):
            tail = _FLAT_BLOCK.get(match[2])
            return f"transformer_blocks.{match[1]}.{tail}" if tail else None
        return _FLAT_TOP.get(flat)


def is_qwen_image_module(path: str) -> bool:
    """Whether `path` names a Linear of a Qwen-Image transformer."""
    match = _BLOCK.fullmatch(path)
    return match[2] in BLOCK_MODULES if match else path in TOP_MODULES


def block_index(path: str) -> int | None:
    """Index of the transformer block a module path lies in, None outside the blocks."""
    match = _BLOCK.fullmatch(path)
    return int(match[1]) if match else None


def unsupported(key: str) -> tuple[str, str] | None:
    """(what it is, remedy) for a key of an adapter that is not a plain LoRA of the transformer, else None."""
    for pattern, what, remedy in _UNSUPPORTED:
        if re.search(pattern, key):
            return what, remedy
    return None


def of_text_encoder(key: str) -> bool:
    """Whether a key belongs to a text encoder, which many trainers save in the same file."""
    return _TEXT_ENCODER.match(key) is not None


def foreign_architecture(key: str) -> str | None:
    """The family of models a key seems to belong to, or None when its name says nothing."""
    for pattern, family in _FOREIGN:
        if re.search(pattern, key):
            return family
    return None


def natural_order(paths: Iterable[str]) -> list[str]:
    """Sort module paths so that block 2 comes before block 10."""
    return sorted(
        paths, key=lambda path: [(int(p), "") if p.isdecimal() else (-1, p) for p in path.split(".")]
    )
