"""Qwen-Image-Edit (2509 and later) as a host: a folder in diffusers' layout, without any user interface."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import BatchFeature, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ..fp8 import AS_LOADED
from ..host import Texts
from ..offload import Offload
from ..pictures import read_picture, to_pil, to_tensor
from ..sharding import Pace
from .diffusers import EditVelocity, keep_small, kept_identity, shard
from .fused import fuse
from .ragged import padded

MULTIPLE = 32
SEEN_AREA = 384 * 384
"""Pixels of the copy that the text encoder looks at."""
IMAGE_TOKEN = "<|image_pad|>"
PARTS = ("transformer", "vae", "text_encoder")
SAMPLES, SAMPLE = 64, 1 << 16
ENCODING = 3 * 2**30
"""Bytes beside the text encoder, at most, while it and the autoencoder work: 2.3 GiB for 1024 x 1024."""
VERSION = 3
"""Of what the model is told: 1 rounded times, and gave words after a picture other positions; 2 showed the
text encoder copies of other sizes."""
EDITION = "QwenImageEditPlusPipeline"
"""The first Qwen-Image-Edit is asked without "Picture 1:", and shown a larger copy."""


class QwenEditHost:
    """See :class:`~collectionlora.training.host.Host`. Latents are (16,H/8,W/8).

    On a GPU the text encoder and the transformer take turns on the device: a run encodes first and trains
    then, and both together do not fit 80 GB. Where the text encoder alone is too large (15.4 GiB), its layers
    wait in host memory until they run.

    Args:
        folder: holds `transformer`, `vae`, `text_encoder`, `tokenizer` and `processor`, as published.
        dtype: what is computed in.
        base_dtype, offload: how the transformer's blocks are kept, see :func:`.diffusers.keep_small`. The two
            blocks that an offloaded transformer has on the device stay there while the text encoder works.
        long_side: pixels, of the pictures that `read_image` makes.
        checkpointing, compiled: see :func:`.fused.fuse`.

    Raises:
        ValueError: naming the folder or part that is missing, damaged or of another edition; more blocks to
            offload than there are.
    """

    name = "qwen-image-edit"
    text_sees_image = True

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        base_dtype: str = AS_LOADED,
        offload: bool | int = False,
        long_side: int = 1024,
        checkpointing: str = "full",
        compiled: bool = False,
    ) -> None:
        _require_edition(folder)
        self.device, self.long_side, self.dtype = torch.device(device), long_side, dtype
        load = {"torch_dtype": dtype, "local_files_only": True, "use_safetensors": True}
        self.transformer = _part(QwenImageTransformer2DModel, folder / "transformer", load)
        vae = _part(AutoencoderKLQwenImage, folder / "vae", load)
        words = _part(Qwen2_5_VLForConditionalGeneration, folder / "text_encoder", load)
        own = {"local_files_only": True}
        tokenizer = _part(Qwen2Tokenizer, folder / "tokenizer", own)
        processor = _Processor(tokenizer, _part(Qwen2VLImageProcessorPil, folder / "processor", own))
        for part in (self.transformer, vae, words):
            part.eval().requires_grad_(False)
        # 2511 sees its source at time 0
        self.reference_method = "index_timestep_zero" if self.transformer.config.get("zero_cond_t") else ""
        self.offload = keep_small(self.transformer, self.device, base_dtype, offload)
        fuse(self.transformer, checkpointing, compiled)
        words.register_forward_pre_hook(partial(_with_types, words.config.image_token_id), with_kwargs=True)
        build: Any = QwenImageEditPlusPipeline
        self._pipeline = build(None, vae.to(self.device), words, tokenizer, processor, self.transformer)
        self._velocity = EditVelocity(self.transformer)
        self._resident: Any = None
        self._layers = Offload(words.model.language_model, self.device)
        self.identity = kept_identity(_identity(folder), base_dtype)
        to_latent = torch.tensor([vae.config.latents_mean, vae.config.latents_std], device=self.device)
        self._mean, self._std = to_latent[:, None, :, None, None]

    def velocity(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        """x, source (B,16,h,w), sigma (B,), text of B prompts -> (B,16,h,w) float32."""
        self._take_turn(self.transformer)
        words, lengths = padded(text)
        x, words, source = (tensor.to(self.device, self.dtype) for tensor in (x, words, source))
        output: Tensor = self._velocity(x, sigma.to(self.device), words, source, lengths)
        return output.float()

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str], image: Tensor | None) -> list[Tensor]:
        """Prompts -> (T,D) each, seen with the source image (3,H,W); lengths differ."""
        self._take_turn(self._pipeline.text_encoder)
        seen = None if image is None else [_small_copy(image)]
        return [self._pipeline.encode_prompt(prompt, seen, self.device)[0][0] for prompt in prompts]

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(B,3,H,W) with sides of multiples of 16 -> (B,16,H/8,W/8) float32."""
        vae = self._pipeline.vae
        frames = (images[:, :, None] * 2 - 1).to(self.device, vae.dtype)
        latents = torch.cat([vae.encode(one).latent_dist.mode() for one in torch.split(frames, 1)])
        scaled: Tensor = (latents[:, :, 0].float() - self._mean) / self._std
        return scaled.contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B,16,h,w) -> (B,3,8h,8w) float32."""
        vae = self._pipeline.vae
        raw = (latents.to(self.device) * self._std + self._mean)[:, :, None].to(vae.dtype)
        frames = torch.cat([vae.decode(one).sample[:, :, 0] for one in torch.split(raw, 1)])
        return ((frames.float() + 1) / 2).clamp(0, 1)

    def read_image(self, path: Path) -> Tensor:
        """(3,H,W): the long side as asked for, the middle cropped to multiples of 32, as the paper does."""
        picture = read_picture(path)
        scale = self.long_side / max(picture.size)
        width, height = (max(MULTIPLE, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = width % MULTIPLE // 2, height % MULTIPLE // 2
        box = (left, top, left + width - width % MULTIPLE, top + height - height % MULTIPLE)
        return to_tensor(picture.crop(box))

    def shard(self) -> Pace:
        """Split the transformer over the processes of a run, see :func:`.diffusers.shard`."""
        pace = shard(self.transformer, self.device, lambda: self._take_turn(self.transformer))
        self._take_turn(self.transformer)  # its blocks have come to the device: the rest follows
        return pace

    def _take_turn(self, part: Any) -> None:
        """The text encoder or the transformer, moved to the device, after the other one has left it."""
        if self._resident is part:
            return
        if self._resident is not None and self.device.type != "cpu":
            self._resident.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # or what comes would lie about in the gaps of what has left
        self._layers.detach()  # after the text encoder's turn: the buffers are free again
        if part is self._pipeline.text_encoder and not self._has_room(part):
            self._layers.attach()
        part.to(self.device)
        self._resident = part

    def _has_room(self, part: torch.nn.Module) -> bool:
        """Whether the device has room for all of that."""
        if self.device.type != "cuda":
            return True
        torch.cuda.empty_cache()  # what it would keep for other tensors is free
        free, _ = torch.cuda.mem_get_info(self.device)
        return sum(p.numel() * p.element_size() for p in part.parameters()) + ENCODING < free


class _Processor:
    """Tokens and patches for Qwen2.5-VL. The published processor wants a video reader (and with it
    torchvision) to do this for pictures.
    """

    def __init__(self, tokenizer: Any, pictures: Any) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures

    def __call__(
        self, text: Sequence[str], images: Sequence[Image.Image] | None, padding: bool, return_tensors: str
    ) -> Any:
        pixels: dict[str, Any] = {}
        if images:
            pixels = dict(self.pictures(images=list(images), return_tensors=return_tensors))
            # one token a patch after merging; marked first, so that what is put in is not found again
            counts = (pixels["image_grid_thw"].prod(1) // self.pictures.merge_size**2).tolist()
            pieces = [one.split(IMAGE_TOKEN) for one in text]
            text = [
                "".join(part + IMAGE_TOKEN * count for part, count in zip(some, [*counts, 0], strict=True))
                for some in pieces
            ]
        words = self.tokenizer(list(text), padding=padding, return_tensors=return_tensors)
        return BatchFeature({**words, **pixels})


def _with_types(
    image_token: int, _: Any, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Which tokens are the picture's. Only if told so transformers 5 gives them rows and columns for places,
    and the pipeline does not tell."""
    types = (named["input_ids"] == image_token).int()
    return given, {**named, "mm_token_type_ids": types}


def _small_copy(image: Tensor) -> Image.Image:
    """(3,H,W) in [0,1] as a picture of SEEN_AREA pixels, as ComfyUI makes it: collections are used there, and
    the pipeline's own, with sides of multiples of 32, often comes to other numbers of tokens."""
    scale = (SEEN_AREA / (image.shape[1] * image.shape[2])) ** 0.5
    size = round(image.shape[1] * scale), round(image.shape[2] * scale)
    return to_pil(interpolate(image[None].float(), size, mode="area")[0])


def _require_edition(folder: Path) -> None:
    """Raises ValueError for another pipeline than EDITION: it would be fed what it was not trained on."""
    try:
        found = json.loads((folder / "model_index.json").read_text("utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}: its model_index.json cannot be read; fetch it again") from error
    if found != EDITION:
        raise ValueError(
            f"{folder}: made for {found}, not {EDITION}: it is prompted otherwise; use the folder of "
            "Qwen-Image-Edit-2509 or a later one"
        )


def _part(kind: Any, folder: Path, settings: dict[str, Any]) -> Any:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; a Qwen-Image-Edit folder holds {', '.join(PARTS)} ...")
    try:
        return kind.from_pretrained(folder, **settings)
    except Exception as error:  # the libraries raise what they like
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder}: cannot be loaded: {reason}; fetch this part again") from error


def _identity(folder: Path) -> str:
    """A hash of samples of all weights: whole files of 57 GB would take minutes at every start."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    for path in sorted(path for part in PARTS for path in (folder / part).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.parent.name}/{path.name} {size}".encode())
        with path.open("rb") as file:
            for k in range(SAMPLES):
                file.seek(max(0, size - SAMPLE) * k // (SAMPLES - 1))
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()
