"""Runs in ComfyUI's Python: what Qwen's own tokenizer is given for a prompt and a picture.

usage: qwen_prompt.py   (prints one line of JSON)
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import comfy.cli_args

comfy.cli_args.args.cpu = True  # before anything asks for a device

import torch  # noqa: E402
from comfy.text_encoders.qwen_image import QwenImageTokenizer  # noqa: E402
from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus  # noqa: E402

from collectionlora.training.hosts.comfy import encode_prompt  # noqa: E402

if __name__ == "__main__":
    given: list[Any] = []
    tokenizer = QwenImageTokenizer()

    def encode(tokens: Any) -> Any:
        given.append(tokens)
        return [[torch.zeros(1, 3, 4), {}]]

    clip = SimpleNamespace(
        tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, encode_from_tokens_scheduled=encode
    )
    image = torch.rand(1, 96, 64, 3)
    ours = encode_prompt(clip, "<prism_x> a cat", image)
    TextEncodeQwenImageEditPlus.execute(clip, "<prism_x> a cat", image1=image)
    encode_prompt(clip, "<prism_x> a cat", None)
    (kind, rows), *_ = given[0].items()
    pictures = [token for row in rows for token, *_ in row if not isinstance(token, int)]

    def plain(tokens: Any) -> Any:
        return [[t if isinstance(t, int) else sorted(t) for t, *_ in row] for row in tokens[kind]]

    print(
        json.dumps(
            {
                "shape": list(ours[0][0].shape),
                "pictures": len(pictures),
                "as core": plain(given[0]) == plain(given[1]),
                "without": any(not isinstance(t, int) for row in given[2][kind] for t, *_ in row),
            }
        )
    )
