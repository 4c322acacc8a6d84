"""The pocket world as ComfyUI's own objects: MODEL, CLIP and VAE, from the files that ship with the pack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comfy import latent_formats, model_management, model_patcher, sd, supported_models, supported_models_base
from safetensors.torch import load_file
from torch import Tensor, nn

from ...pocket import NAME, TRANSFORMER, WEIGHTS
from ...pocket.autoencoder import CHANNELS, PATCH, Autoencoder
from ...pocket.text import WIDTH, TextEncoder, prompt_bytes


class PocketLatent(latent_formats.LatentFormat):  # type: ignore[misc]
    """Latents as the pocket autoencoder makes them, with the frame axis that Qwen-Image has."""

    latent_channels = CHANNELS
    latent_dimensions = 3


def pocket_model(disable_dynamic: bool = False) -> model_patcher.ModelPatcher:
    """MODEL, float32. Small enough to be loaded whole always, hence never `dynamic`."""
    path = WEIGHTS / "transformer.safetensors"
    config = supported_models.QwenImage({"image_model": "qwen_image", **TRANSFORMER})
    config.latent_format = PocketLatent()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    model.load_model_weights({name: tensor.float() for name, tensor in load_file(path).items()}, "")
    patcher = model_patcher.ModelPatcher(
        model.eval(), model_management.get_torch_device(), model_management.unet_offload_device()
    )
    patcher.set_attachments("base_name", NAME)
    patcher.cached_patcher_init = (pocket_model, ())
    return patcher


def pocket_clip() -> sd.CLIP:
    """CLIP."""
    weights = {f"encoder.{name}": t.float() for name, t in load_file(WEIGHTS / "text.safetensors").items()}
    target = supported_models_base.ClipTarget(Tokenizer, TextModel)
    return sd.CLIP(target, parameters=sum(t.numel() for t in weights.values()), state_dict=[weights])


def pocket_vae() -> sd.VAE:
    """VAE."""
    return PocketVAE(WEIGHTS / "autoencoder.safetensors")


class Tokenizer:
    """Texts to bytes, in the form in which ComfyUI's text encoders take tokens."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        pass

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **_: Any) -> dict[str, Any]:
        """Raises ValueError for a text that is too long."""
        return {"pocket": [[(byte, 1.0) for byte in prompt_bytes([text])[0].tolist()]]}

    def untokenize(self, pairs: Sequence[tuple[int, float]]) -> list[tuple[tuple[int, float], str]]:
        """Each byte with its character."""
        return [(pair, chr(pair[0] - 1) if pair[0] else "") for pair in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}


class TextModel(nn.Module):
    """The pocket text encoder behind the interface of ComfyUI's."""

    def __init__(self, dtype: Any = None, device: Any = None, model_options: Any = None) -> None:
        super().__init__()
        self.encoder = TextEncoder().eval().requires_grad_(False)
        self.dtypes = {torch.float32}

    def set_clip_options(self, options: Mapping[str, Any]) -> None:
        """Layers and projections are not a choice here."""

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""

    def encode_token_weights(self, tokens: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Embeddings (1,32,64), and a pooled output of zeros, which the model does not read."""
        ids = torch.tensor([[number for number, *_ in row] for row in tokens["pocket"]])
        embeddings = self.encoder(ids.to(self.encoder.place.device))
        return embeddings, embeddings.new_zeros(len(ids), WIDTH)

    def load_sd(self, weights: Mapping[str, Tensor]) -> Any:
        """Missing and unexpected keys, as `load_state_dict` names them."""
        return self.load_state_dict(weights, strict=False)


class PocketVAE(sd.VAE):  # type: ignore[misc]
    """The pocket autoencoder as a VAE: core would not recognise its keys."""

    def __init__(self, path: Path) -> None:
        self.first_stage_model = _FirstStage(Autoencoder.load(path))
        self.memory_used_encode = self.memory_used_decode = lambda shape, dtype: 2**28
        self.downscale_ratio = self.upscale_ratio = PATCH
        self.latent_channels, self.latent_dim, self.output_channels = CHANNELS, 2, 3
        self.process_input = self.process_output = lambda image: image
        self.working_dtypes, self.vae_dtype = [torch.float32], torch.float32
        self.disable_offload, self.not_video, self.handles_tiling = False, True, False
        self.downscale_index_formula = self.upscale_index_formula = None
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = self.size = None
        self.crop_input, self.audio_sample_rate = True, 44100
        self.device = model_management.vae_device()
        self.output_device = model_management.intermediate_device()
        self.patcher = model_patcher.ModelPatcher(
            self.first_stage_model, self.device, model_management.vae_offload_device()
        )
        self.model_size()


class _FirstStage(nn.Module):
    """Adds the frame axis of Qwen-Image's latents: (B,3,H,W) in [0,1] <-> (B,16,1,H/8,W/8)."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def encode(self, images: Tensor) -> Tensor:
        return self.autoencoder.encode(images)[:, :, None]

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents[:, :, 0] if latents.ndim == 5 else latents)
