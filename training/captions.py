"""Captions of effects: the words after the tag in a student prompt (paper, section on AOP).

By default the teacher's own prompt serves. With an OpenAI-compatible endpoint configured, a vision-language
model writes the caption from two random training pairs and the teacher's prompt.
"""

from __future__ import annotations

import base64
import io
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import torch
from PIL import Image
from torch import Tensor

from .randomness import generator

PAIRS_SHOWN = 2
IMAGE_AREA = 384 * 384
ANSWER_LIMIT = 1 << 20
"""Bytes of an answer that are read: a caption is a sentence, more is a wrong endpoint."""
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}

WORDS = 40
"""Of a caption, at most."""
LETTERS = 1000
"""Of a caption, at most, in any script."""
INSTRUCTION = (
    "Below are {count} examples of one and the same picture edit: the first image of each is the input, the "
    "second its result. The model that made them was prompted with: {prompt!r}.\n"
    "Write the instruction that would make an image editor apply this edit to any other picture. Say what is "
    "added or changed and how it looks: material, colours, light, style, layout. The people, animals and "
    "things shown are only examples, so call whatever is shown 'the subject'. Mention camera angle or "
    "perspective only if it is the same in every example. Answer with that one sentence of at most {words} "
    "words: no quotation marks, no introduction."
)


class CaptionError(RuntimeError):
    """The configured endpoint gave no usable caption. The message names the endpoint, never the key."""


@dataclass(frozen=True)
class VlmEndpoint:
    """Where captions come from. url is the API's base, such as `http://localhost:8000/v1`."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    """Seconds for one attempt."""
    retries: int = 3
    """Further attempts after a transient failure (refused connection, timeout, HTTP 429 or 5xx)."""
    pause: float = 1.0
    """Seconds before the first retry; doubled after each."""

    def address(self) -> str:
        """The chat-completions address. Raises CaptionError for anything but an http(s) URL with a host."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise CaptionError(f"caption endpoint {self.url!r}: not an http or https address")
        base = self.url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"


def caption_template(teacher_prompt: str) -> str:
    """The caption without a VLM: the teacher's prompt without `<trigger>` words and the final full stop.

    It claims nothing that the prompt does not say. Raises ValueError if nothing is left.
    """
    words = re.sub(r"<[^<>]*>", " ", teacher_prompt).split()
    caption = " ".join(words).rstrip(" .")
    if not caption:
        raise ValueError(
            f"the teacher prompt {teacher_prompt!r} says nothing to caption; give its effect a "
            "recaption_prompt"
        )
    return caption


def pairs_shown(count: int, name: str, seed: int) -> list[int]:
    """Which of the `count` samples of an effect the endpoint is shown: at most 2, drawn by the seed."""
    order = torch.randperm(count, generator=generator(seed, "caption pairs", name))
    return order[:PAIRS_SHOWN].tolist()


def caption_vlm(endpoint: VlmEndpoint, pairs: Sequence[tuple[Tensor, Tensor]], teacher_prompt: str) -> str:
    """Ask the endpoint's model for a caption, with (source, result) pairs, images (3,H,W) in [0,1].

    Raises CaptionError naming the endpoint: unreachable, refused, or an answer that is empty or far too long.
    A template in its place would silently change the prompts.
    """
    ask = INSTRUCTION.format(count=len(pairs), prompt=teacher_prompt, words=WORDS)
    content: list[dict[str, Any]] = [{"type": "text", "text": ask}]
    for number, pair in enumerate(pairs, 1):
        for word, image in zip(("input", "result"), pair):
            content.append({"type": "text", "text": f"Example {number}, {word}:"})
            content.append({"type": "image_url", "image_url": {"url": data_url(image)}})
    # No temperature or token limit: endpoints disagree on their names and refuse what they do not know.
    answer = _post(endpoint, {"model": endpoint.model, "messages": [{"role": "user", "content": content}]})
    try:
        text = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise CaptionError(f"caption endpoint {endpoint.url}: the answer has no choices[0].message.content")
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)  # reasoning models show their reasoning
    caption = " ".join(text.split()).strip("\"'“”` ").rstrip(" .")
    if not caption:
        raise CaptionError(f"caption endpoint {endpoint.url}: model {endpoint.model!r} gave an empty caption")
    if len(caption.split()) > 2 * WORDS or len(caption) > LETTERS:  # some scripts know no spaces
        raise CaptionError(
            f"caption endpoint {endpoint.url}: model {endpoint.model!r} gave {len(caption.split())} words, "
            f"{len(caption)} letters, where at most {WORDS} words were asked for: {caption[:80]!r}..."
        )
    return caption


def data_url(image: Tensor) -> str:
    """An image (3,H,W) in [0,1] as a PNG data URL, reduced to the area of 384 x 384 if larger."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image has shape (3, H, W), not {tuple(image.shape)}")
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels)
    scale = (IMAGE_AREA / (picture.width * picture.height)) ** 0.5
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would send the key on to wherever a redirect points."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


def _post(endpoint: VlmEndpoint, body: dict[str, Any]) -> Any:
    """POST as JSON with retries -> the parsed answer."""
    headers = {"Content-Type": "application/json"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    request = urllib.request.Request(endpoint.address(), json.dumps(body).encode(), headers, method="POST")
    opener = urllib.request.build_opener(_NoRedirect)
    for attempt in range(endpoint.retries + 1):
        try:
            with opener.open(request, timeout=endpoint.timeout) as response:
                raw = response.read(ANSWER_LIMIT + 1)
            break
        except urllib.error.HTTPError as error:
            with error:
                detail = error.read(2000).decode("utf-8", "replace")
            reason = f"HTTP {error.code} {error.reason}: {' '.join(detail.split())[:200]}"
            again = error.code in TRANSIENT
        except (OSError, HTTPException) as error:  # URLError, timeouts, dropped connections
            reason, again = str(getattr(error, "reason", None) or error or type(error).__name__), True
        if not again or attempt == endpoint.retries:
            if endpoint.key:
                reason = reason.replace(endpoint.key, "***")
            tries = f" after {attempt + 1} attempts" if attempt else ""
            raise CaptionError(f"caption endpoint {endpoint.url}{tries}: {reason}") from None
        time.sleep(endpoint.pause * 2**attempt)
    try:
        if len(raw) > ANSWER_LIMIT:
            raise ValueError("the answer is larger than 1 MiB")
        return json.loads(raw)
    except ValueError as error:
        raise CaptionError(f"caption endpoint {endpoint.url}: not a JSON answer ({error})") from None
