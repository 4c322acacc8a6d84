"""The pocket world as a host: diffusers' transformer with the pocket's own text encoder and autoencoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ...pocket import NAME, WEIGHTS
from ...pocket.autoencoder import Autoencoder
from ...pocket.images import load_picture
from ...pocket.text import TextEncoder
from ..fp8 import AS_LOADED
from ..sharding import Pace
from .diffusers import EditVelocity, keep_small, kept_identity, load_pocket_transformer, shard
from .fused import fuse
from .plain_attention import PlainAttention, attended

Model = TypeVar("Model", bound=torch.nn.Module)


class PocketHost:
    """See :class:`~collectionlora.training.host.Host`. 128 x 128 pixels, latents (16,16,16).

    Args:
        base_dtype, offload: how the transformer's blocks are kept, see :func:`.diffusers.keep_small`. The
            pocket would fit anywhere: this is for trying them.
        bfloat16: compute in bfloat16 in place of float32, which is faster where the device has it.
        compiled: see :func:`.fused.fuse`.

    Raises ValueError naming the file when weights are missing, damaged or of another model.
    """

    name = NAME
    text_sees_image = False
    reference_method = ""

    def __init__(
        self,
        folder: Path = WEIGHTS,
        device: torch.device | str = "cpu",
        base_dtype: str = AS_LOADED,
        offload: bool | int = False,
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        files = {name: folder / f"{name}.safetensors" for name in ("transformer", "autoencoder", "text")}
        self.transformer = _load(load_pocket_transformer, files["transformer"])
        self.dtype = torch.bfloat16 if bfloat16 else torch.float32
        torch.nn.Module.to(self.transformer, self.dtype)  # diffusers' own warns of nothing
        plain = bfloat16 and self.device.type == "cpu"
        if plain:
            self.transformer.set_attn_processor(PlainAttention())  # type: ignore[operator]
        self.offload = keep_small(self.transformer, self.device, base_dtype, offload)
        if compiled:
            attend = attended if plain else F.scaled_dot_product_attention
            fuse(self.transformer, compiled=True, attend=attend)
        self.transformer.to(self.device)
        self._autoencoder = _load(Autoencoder.load, files["autoencoder"]).to(self.device)
        self._text = _load(TextEncoder.load, files["text"]).to(self.device)
        self._velocity = EditVelocity(self.transformer)
        hashes = " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values())
        self.identity = kept_identity(hashes, base_dtype)

    def shard(self) -> Pace:
        """Split the transformer over the processes of a run, see :func:`.diffusers.shard`."""
        return shard(self.transformer, self.device)

    def velocity(self, x: Tensor, sigma: Tensor, text: Tensor, source: Tensor) -> Tensor:
        """x, source (B,16,16,16), sigma (B,), text (B,32,64) -> (B,16,16,16) float32."""
        x, text, source = (tensor.to(self.dtype) for tensor in (x, text, source))
        output: Tensor = self._velocity(x, sigma, text, source)
        return output.float()

    def encode_text(self, prompts: Sequence[str], image: Tensor | None = None) -> list[Tensor]:
        """Prompts -> (32,64) each; this encoder does not look at the image."""
        return list(self._text.encode(prompts))

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """(B,3,128,128) -> (B,16,16,16)."""
        parts = [self._autoencoder.encode(part) for part in torch.split(images.to(self.device), 32)]
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B,16,16,16) -> (B,3,128,128)."""
        return torch.cat([self._autoencoder.decode(part) for part in torch.split(latents, 32)])

    def read_image(self, path: Path) -> Tensor:
        """The largest central square of a picture file, (3,128,128)."""
        return torch.from_numpy(load_picture(path)).movedim(-1, 0).contiguous()


def _load(load: Callable[[Path], Model], path: Path) -> Model:
    try:
        return load(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; it belongs to the pocket base, fetch it again") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        # torch lists every key that does not fit: the first says enough
        reason = " ".join(" ".join(first[:2]).split())[:200]
        raise ValueError(f"{path}: damaged, or not the pocket base's: {reason}; fetch it again") from error
