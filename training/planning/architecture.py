"""A Qwen-Image transformer by its sizes alone: its Linears, what it computes, what autograd keeps of it.

Formulas follow diffusers' `QwenImageTransformer2DModel` with fused blocks (:mod:`..hosts.fused`) and adapters
on their Linears. Tests hold them against real models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from torch import nn

from ...collection.lora_weights import Shapes
from ..lora import linear_shapes

TOKEN_PIXELS = 16
"""Side of the square of pixels that one token stands for: the autoencoder's 8 times the patch's 2."""
LATENT_PIXELS = 8
BLOCKS = "transformer_blocks"
_MODULATION = ("img_mod.1", "txt_mod.1")
"""Linears that act once a sample."""
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")


@dataclass(frozen=True)
class Tokens:
    """What one sample of an edit is to the transformer: the picture's tokens twice (the result and the source
    beside it), and the prompt's."""

    image: int
    text: int

    @classmethod
    def of(cls, side: int, text: int) -> Tokens:
        """Of a square picture of `side` pixels, of which other proportions with that long side have fewer."""
        return cls(2 * (side // TOKEN_PIXELS) ** 2, text)

    @property
    def all(self) -> int:
        """Tokens that attend to each other."""
        return self.image + self.text


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one sample's forward, a multiply-add counted as two."""

    linears: float
    """The base's Linears."""
    attention: float
    """Two matrix products a head: scores, and values by scores."""

    @property
    def forward(self) -> float:
        """Without adapters."""
        return self.linears + self.attention

    @property
    def backward(self) -> float:
        """Gradients of activations alone, for the base is frozen: of a Linear's one operand, of both that
        attention multiplies."""
        return self.linears + 2 * self.attention

    @property
    def scores(self) -> float:
        """What attention's backward computes a second time."""
        return self.attention / 2


@dataclass(frozen=True)
class Architecture:
    """Sizes by the names of the model's own `config.json`. The defaults are Qwen-Image's."""

    num_layers: int = 60
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 3584
    in_channels: int = 64
    out_channels: int = 16

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Architecture:
        """From a `config.json`; its other keys do not matter. Raises ValueError for another model's."""
        known = {field.name: config.get(field.name) for field in fields(cls)}
        wrong = [name for name, value in known.items() if not isinstance(value, int) or value < 1]
        if wrong:
            raise ValueError(
                f"no Qwen-Image transformer's configuration: {', '.join(wrong)} missing or wrong"
            )
        return cls(**known)  # type: ignore[arg-type]

    @classmethod
    def found_in(cls, module: nn.Module) -> Architecture | None:
        """Of a model at hand; None if it is no Qwen-Image transformer."""
        shapes = linear_shapes(module)
        try:
            made = cls(
                num_layers=len(module.get_submodule(BLOCKS)),  # type: ignore[arg-type]
                num_attention_heads=1,
                attention_head_dim=shapes["img_in"][0],
                joint_attention_dim=shapes["txt_in"][1],
                in_channels=shapes["img_in"][1],
                out_channels=shapes["proj_out"][0] // 4,
            )
            head = int(module.get_parameter(f"{BLOCKS}.0.attn.norm_q.weight").shape[0])
        except (KeyError, AttributeError):
            return None
        found = replace(made, num_attention_heads=made.width // head, attention_head_dim=head)
        return found if dict(found.linears) == shapes else None

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @cached_property
    def linears(self) -> Shapes:
        """Module path -> (out, in) of every Linear, as `linear_shapes` finds them."""
        d = self.width
        block = {
            "img_mod.1": (6 * d, d),
            **{f"attn.{name}": (d, d) for name in ("to_q", "to_k", "to_v")},
            **{f"attn.add_{name}_proj": (d, d) for name in ("k", "v", "q")},
            **{f"attn.{name}": (d, d) for name in ("to_out.0", "to_add_out")},
            "img_mlp.net.0.proj": (4 * d, d),
            "img_mlp.net.2": (d, 4 * d),
            "txt_mod.1": (6 * d, d),
            "txt_mlp.net.0.proj": (4 * d, d),
            "txt_mlp.net.2": (d, 4 * d),
        }
        return {
            "time_text_embed.timestep_embedder.linear_1": (d, 256),
            "time_text_embed.timestep_embedder.linear_2": (d, d),
            "img_in": (d, self.in_channels),
            "txt_in": (d, self.joint_attention_dim),
            **{
                f"{BLOCKS}.{i}.{path}": shape for i in range(self.num_layers) for path, shape in block.items()
            },
            "norm_out.linear": (2 * d, d),
            "proj_out": (4 * self.out_channels, d),
        }

    @property
    def weights(self) -> int:
        """Numbers in the matrices of all Linears."""
        return sum(out * into for out, into in self.linears.values())

    @property
    def block_weights(self) -> int:
        """Of these, in one block."""
        first = f"{BLOCKS}.0."
        return sum(out * into for path, (out, into) in self.linears.items() if path.startswith(first))

    @property
    def largest_linear(self) -> int:
        """Numbers in the largest matrix."""
        return max(out * into for out, into in self.linears.values())

    @property
    def other_parameters(self) -> int:
        """Numbers in biases and norms."""
        norms = self.joint_attention_dim + 4 * self.attention_head_dim * self.num_layers
        return sum(out for out, _ in self.linears.values()) + norms

    # -- operations ------------------------------------------------------------------------------------------

    def operations(self, tokens: Tokens) -> Operations:
        """Of one sample. A forward of 1024 x 1024 pixels with 256 tokens of text takes 1.7e14."""
        linears = 2.0 * sum(out * into * _rows(path, tokens) for path, (out, into) in self.linears.items())
        return Operations(linears, 4.0 * tokens.all**2 * self.width * self.num_layers)

    def adapter_operations(self, targets: Shapes, rank: int, tokens: Tokens) -> float:
        """What an adapter adds to the forward of one sample; its backward is twice that."""
        return 2.0 * rank * sum((out + into) * _rows(path, tokens) for path, (out, into) in targets.items())

    # -- activations -----------------------------------------------------------------------------------------

    def block_inputs(self, tokens: Tokens, item: int) -> int:
        """Bytes that are kept to the backward for every sample when blocks are checkpointed: what goes into
        each block, and into the last norm. `item`: bytes of a number of the model's arithmetic."""
        return self.width * item * (self.num_layers * tokens.all + tokens.image)

    def attention_kept(self, tokens: Tokens, item: int) -> int:
        """Bytes of what attention keeps of one sample in all blocks: query, key, value and output, and the
        softmax's statistics in float32."""
        return self.num_layers * tokens.all * self._attention(item)

    def _attention(self, item: int) -> int:
        return 4 * self.width * item + 4 * self.num_attention_heads

    def block_activations(self, tokens: Tokens, rank: int, item: int, attention: bool = True) -> int:
        """Bytes that one block keeps of one sample to its backward; adapters on all of its Linears.

        Of each token: its input and what is modulated of it, query and key before their norm, attention's
        output as it goes into the projection and as it comes out of it, the sum with the input and what is
        modulated of that, the mlp's output (9 of the width), the mlp's hidden state before and after its
        activation (2 of four times the width), what attention keeps, and the low ranks of six adapters.

        Args:
            attention: whether attention and what comes before it are included.
        """
        width = self.width * item
        after = (5 + 2 * 4) * width + 3 * rank * item
        before = 4 * width + 3 * rank * item + self._attention(item)
        return tokens.all * (after + before if attention else after)

    def backward_transient(self, tokens: Tokens, item: int) -> int:
        """Bytes of one sample beside what is kept, at the worst moment of a backward: the gradient of the
        mlp's hidden state, and of what leaves the block."""
        return self.width * item * (4 * tokens.image + tokens.all // 2)

    def forward_transient(self, tokens: Tokens, item: int) -> int:
        """Bytes of one sample at the worst moment of a forward that keeps nothing: in the mlp, the hidden
        state before and after its activation (2 of four times the width), and four tensors of the block."""
        return self.width * item * (4 + 2 * 4) * tokens.all


def _rows(path: str, tokens: Tokens) -> int:
    """How many vectors of one sample pass through a Linear."""
    if path.endswith(_MODULATION) or path.startswith(("time_text_embed", "norm_out")):
        return 1
    return tokens.text if path.endswith((*_TEXT, "txt_in")) else tokens.image
