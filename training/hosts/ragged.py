"""Prompts of several lengths in one batch, without a mask, which would cost flash attention.

Only attention knows how long a prompt is: it goes sample by sample, over the tokens that each one has, and
all else takes the padded batch at once. What stands in the padding reaches nothing, so a sample gets what it
would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..data import together
from ..host import Texts


def padded(texts: Texts) -> tuple[Tensor, list[int] | None]:
    """(B,T,D), filled up with zeros at the end, and the lengths; None where nothing had to be filled up."""
    if not isinstance(texts, Tensor):
        texts = together(texts)
    if isinstance(texts, Tensor):
        return texts, None
    return pad_sequence(list(texts), batch_first=True), [len(text) for text in texts]


def one_by_one(attend: Callable[..., Tensor], qkv: Sequence[Tensor], lengths: Sequence[int]) -> list[Tensor]:
    """Attention of samples whose text is so long; after the padded text comes what all have alike.

    Args:
        attend: query, key, value (1,H,S,D) -> one sample's output.
        qkv: (B,H,T+L,D) each, T the largest of `lengths`.
    """
    longest = max(lengths)
    # split and not cut, sample by sample: the gradient of a cut is as large as what it is cut from
    halves = [half for x in qkv for half in torch.split(x, [longest, x.shape[2] - longest], 2)]
    outputs = []
    for length, *sample in zip(lengths, *(torch.split(half, 1) for half in halves), strict=True):
        texts, others = sample[::2], sample[1::2]
        own = (torch.cat([text[:, :, :length], other], 2) for text, other in zip(texts, others, strict=True))
        outputs.append(attend(*own))
    return outputs


def joined(outputs: Sequence[Tensor], lengths: Sequence[int], tokens: int) -> Tensor:
    """Outputs (1,...) of :func:`one_by_one`, which have their tokens at dimension `tokens`, as one batch of
    padded text: zeros in the padding."""
    parts = []
    for output, length in zip(outputs, lengths, strict=True):
        text, others = torch.split(output, [length, output.shape[tokens] - length], tokens)
        gap = list(text.shape)
        gap[tokens] = max(lengths) - length
        parts.append(torch.cat([text, text.new_zeros(gap), others], tokens))
    return torch.cat(parts)
