"""The ComfyUI host: lends a MODEL, CLIP and VAE that ComfyUI owns, and gives them back as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from comfy import model_management, model_sampling, ops
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.model_patcher import LowVramPatch
from comfy.text_encoders.qwen_image import QwenImageTokenizer
from torch import Tensor, nn

from ..host import Texts
from ..memory import allocated_memory
from ..pictures import fitted, read_picture
from .borrowed import borrowed
from .ragged import joined, one_by_one, padded
from .streamed import gradient_error, streamed_linears

SAMPLES, SAMPLE = 16, 4096
OVERRIDE = "optimized_attention_override"


ALL = 1e30  # bytes
CHECKED = 32
"""Streamed Linears whose gradients are looked at before a run: those of two blocks."""
LARGEST_ERROR = 1e-2
"""Of a gradient through streamed weights: more than rounding in bfloat16."""


class UnsupportedModelError(ValueError):
    """This MODEL cannot be trained on as it is loaded; the message says what to change."""


class ComfyHost:
    """See :class:`~collectionlora.training.host.Host`. Any flow-matching edit model with reference latents.

    ::

        host = ComfyHost(model, clip, vae)
        with host.lend():
            ...                      # everything: adapters, encoding, training, previews

    Args:
        model, clip, vae: as ComfyUI's nodes pass them.
        long_side, multiple, square: the pictures that `read_image` makes.

    Raises:
        UnsupportedModelError: no flow-matching model; one that takes a pooled text embedding; dynamic VRAM,
            and a loader that cannot do without.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        vae: Any,
        long_side: int = 1024,
        multiple: int = 32,
        square: bool = False,
        reference_method: str = "",
    ) -> None:
        kind = type(model.model).__name__
        if not isinstance(model.model.model_sampling, model_sampling.CONST):
            raise UnsupportedModelError(
                f"{kind} is no flow-matching model; connect an edit model such as Qwen-Image-Edit"
            )
        if getattr(model.model.diffusion_model, "vector_in", None) is not None:
            raise UnsupportedModelError(
                f"{kind} reads a pooled text embedding, which is not supported; connect Qwen-Image-Edit "
                "or FLUX.2"
            )
        # In dynamic VRAM core moves weights by its own counsel: it gives training a model of its own, as it
        # does where hooks need one.
        self._own = bool(model.is_dynamic())
        if self._own:
            model = not_dynamic(model)
        self._patcher, self._clip, self._vae = model, clip, vae
        self._model = model.model
        self.long_side, self.multiple, self.square = long_side, multiple, square
        self.reference_method = reference_method
        self.device: torch.device = model.load_device
        self.dtype: torch.dtype = self._model.get_dtype_inference()
        self.transformer: nn.Module = self._model.diffusion_model
        self.name: str = model.get_attachment("base_name") or kind
        self.text_sees_image = isinstance(clip.tokenizer, QwenImageTokenizer)
        self._loaded = self._moved = False
        self._room: int | None = None
        self._foreign: int | None = None
        """Bytes of tensors on the device that were neither the model's nor training's when it was lent."""
        self._checked: set[nn.Module] = set()
        self.checkpointing = self.device.type != "cpu"
        self._frames = self._model.latent_format.latent_dimensions == 3

    @property
    def size(self) -> int:
        """Bytes of the model's weights."""
        return int(self._patcher.model_size())

    @cached_property
    def identity(self) -> str:
        """A hash of samples of all weights. Ask while it is lent: a LoRA on the base is in them then."""
        if not self._loaded:  # others' weights are on the device in another precision than in their files
            self._load()
        digest = hashlib.sha256(self.reference_method.encode())
        parts = (self.transformer, self._clip.cond_stage_model, self._vae.first_stage_model)
        for name, tensor in (item for part in parts for item in sorted(_tensors(part).items())):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().reshape(-1)
            step = max(1, len(flat) // SAMPLES)
            for start in range(0, len(flat), step):
                piece = flat[start : start + SAMPLE // tensor.element_size()].cpu()
                digest.update(piece.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def loaded(self) -> int:
        """Bytes of these that are on the device while it is lent; the others come when they are used."""
        return int(self._patcher.loaded_size())

    @contextmanager
    def lend(self, room: int | None = None) -> Iterator[None]:
        """Take the model for a while, with gradients passing through it.

        On leaving, whatever happened, model and process settings are as they were found.

        Args:
            room: bytes that training needs on the device beside the weights. Weights that do not fit beside
                it wait in host memory. None: all of them must be there.

        Raises:
            UnsupportedModelError: it does not fit, or gradients through weights that wait come out wrong.
        """
        before = model_management.in_training
        self._room, self._foreign = room, None
        # Nodes run in inference mode, where nothing can be trained; core's streams are the current device's.
        current = model_management.cuda_device_context(self.device)
        with torch.inference_mode(False), torch.enable_grad(), current:
            try:
                self._load()
                model_management.in_training = True
                with borrowed(self.transformer, self.device, self.checkpointing):
                    self._check_gradients()
                    yield
            finally:
                model_management.in_training = before
                if self._own:
                    _discard(self._patcher)

    def _load(self) -> None:
        patcher, room = self._patcher, self._room
        with torch.inference_mode():  # weights that were made in a node may be moved only there
            # ComfyUI would leave the text encoder where it is: it knows of no gradients to come
            present = model_management.current_loaded_models
            kept = [one for one in present if patcher.is_clone(one.model)]  # with other LoRAs, say
            model_management.free_memory(ALL, self.device, kept)
            if room is None:
                model_management.load_models_gpu([patcher], force_full_load=True)
            else:
                others = max(0, allocated_memory(self.device) - self.loaded)  # 0 too where nobody knows
                if self._foreign is None:
                    self._foreign = others
                    free = model_management.get_free_memory(self.device)
                    if self._own and free < self.size - self.loaded + room:
                        _out_of_files(self.transformer)
                held = max(0, others - self._foreign)  # adapters and their moments are there by now
                model_management.load_models_gpu([patcher], memory_required=max(0, room - held))
        self._loaded = self._moved = True
        if _waits_for_a_lora(self.transformer):
            raise UnsupportedModelError(
                f"the model has a LoRA on it and does not fit on {self.device} as a whole; leave that LoRA "
                "out, or load the base in fp8"
            )
        if room is None and self.loaded < self.size:
            raise UnsupportedModelError(
                f"the model does not fit on {self.device}: {self.loaded >> 20} of {self.size >> 20} MiB are "
                "there, and training needs all of it; close other programs, leave out --lowvram and "
                "--novram, or load the base in fp8"
            )

    def _check_gradients(self) -> None:
        """Of weights that wait and did not before: all of them come in the same way."""
        if not self._moved:
            return
        self._moved, waiting = False, streamed_linears(self.transformer, self.device)
        new = [one for one in waiting if one not in self._checked]
        self._checked.update(new)
        error = gradient_error(new[:CHECKED], self.device, self.dtype)
        if error > LARGEST_ERROR:
            raise UnsupportedModelError(
                f"gradients through weights that ComfyUI brings to {self.device} are wrong by {error:.2g} of "
                "their size; start ComfyUI with --disable-async-offload, or load the base in fp8 so that it "
                "fits"
            )

    def velocity(self, x: Tensor, sigma: Tensor, text: Texts, source: Tensor) -> Tensor:
        """x, source (B,C,h,w), sigma (B,), text of B prompts -> (B,C,h,w) float32.

        Raises ValueError for prompts of several lengths, where the model is no Qwen-Image.
        """
        if not self._loaded:  # the text encoder or the autoencoder had its turn
            self._load()
        self._check_gradients()
        words, lengths = padded(text)
        x, sigma, words, source = (tensor.to(self.device) for tensor in (x, sigma, words, source))
        x, source = self._framed(x), self._framed(source)
        conds = self._model.extra_conds(
            cross_attn=words,
            reference_latents=[self._model.process_latent_out(source)],
            reference_latents_method=self.reference_method or None,
            noise=x,
            device=self.device,
        )
        given = {name: cond.process_cond(batch_size=len(x), area=None).cond for name, cond in conds.items()}
        options = self._patcher.model_options.get("transformer_options", {})
        if torch.is_grad_enabled():
            options = {**options, OVERRIDE: _with_gradient}
        if lengths is not None:
            options = {**options, OVERRIDE: self._one_by_one(lengths, options.get(OVERRIDE))}
        # What core returns is x - sigma v: at small sigmas the velocity would be lost in rounding.
        seen: list[Tensor] = []
        hook = self.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
        try:
            self._model.apply_model(x, sigma, transformer_options=options, **given)
        finally:
            hook.remove()
        return self._bare(seen[0].float())

    def _one_by_one(self, lengths: list[int], found: Any) -> Callable[..., Any]:
        """Attention over prompts of several lengths, each sample by what was to attend."""
        if not isinstance(self.transformer, QwenImageTransformer2DModel):  # its tokens: text, then image
            raise ValueError(f"prompts of {sorted(set(lengths))} tokens in one batch; set micro_batch = 1")

        def override(attend: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = attend if found is None else partial(found, attend)
            outputs = one_by_one(lambda *qkv: chosen(*qkv, *args[3:], **kwargs), args[:3], lengths)
            return joined(outputs, lengths, 1)

        return override

    # Core's encoders run in inference mode, as in their nodes; clones are tensors that training may save.

    def encode_text(self, prompts: Sequence[str], image: Tensor | None) -> list[Tensor]:
        """Prompts -> (T,D) each, seen with the source image (3,H,W) if the encoder looks at it."""
        self._loaded = False
        with torch.inference_mode():
            seen = None if image is None else image.movedim(0, -1)[None]
            found = [encode_prompt(self._clip, prompt, seen)[0][0][0] for prompt in prompts]
        return [text.to(self.device).clone() for text in found]

    def encode_image(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,C,h,w) float32."""
        self._loaded = False
        with torch.inference_mode():
            # one by one: a batch would be the frames of a film to a video autoencoder
            latents = torch.cat([self._vae.encode(one.movedim(1, -1)) for one in torch.split(images, 1)])
            latents = self._bare(self._model.process_latent_in(latents.float()))
        return latents.to(self.device).clone()

    def decode(self, latents: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,3,H,W) float32."""
        self._loaded = False
        with torch.inference_mode():
            raw = self._model.process_latent_out(self._framed(latents.detach()))
            images = torch.cat([self._vae.decode(one).flatten(0, -4) for one in torch.split(raw, 1)])
        return images.movedim(-1, 1).float().to(self.device).clone()

    def read_image(self, path: Path) -> Tensor:
        """(3,H,W) in [0,1]: the middle of a picture file in the size given at the start."""
        return fitted(read_picture(path), self.long_side, self.multiple, self.square)

    def _framed(self, latents: Tensor) -> Tensor:
        return latents[:, :, None] if self._frames and latents.ndim == 4 else latents

    def _bare(self, latents: Tensor) -> Tensor:
        return latents[:, :, 0] if latents.ndim == 5 else latents


def not_dynamic(patcher: Any) -> Any:
    """The same model once more, loaded without dynamic VRAM. Raises UnsupportedModelError."""
    with torch.inference_mode():  # as a loader node
        model_management.unload_model_and_clones(patcher, all_devices=True)
        try:
            own = patcher.clone(disable_dynamic=True)
        except (RuntimeError, TypeError) as error:  # its loader has not said how it loads
            if model_management.is_oom(error):
                raise
            raise UnsupportedModelError(
                "ComfyUI streams this model's weights (dynamic VRAM), and its loader cannot load it "
                f"otherwise ({error}); load it with core's Load Diffusion Model, or start ComfyUI with "
                "--disable-dynamic-vram"
            ) from error
        # A loader's weight_dtype is a promise to cast as the weights come, which none but core's dynamic
        # patcher keeps.
        for module in own.model.diffusion_model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                asked = getattr(module, f"{name}_comfy_model_dtype", None) or parameter.dtype
                if parameter.dtype != asked and not isinstance(parameter, ops.QuantizedTensor):
                    setattr(module, name, nn.Parameter(parameter.to(asked), requires_grad=False))
        own.size = 0  # counted anew
    return own


def _waits_for_a_lora(module: nn.Module) -> bool:
    """Whether some weights that wait get a LoRA of the user's each time they come."""
    functions = (
        function
        for child in module.modules()
        for kind in ("weight_function", "bias_function")
        for function in getattr(child, kind, ())
    )
    return any(isinstance(function, LowVramPatch) for function in functions)


def _out_of_files(transformer: nn.Module) -> None:
    """Quantised weights of which some will wait in host memory, copied there from their mapped file: what is
    mapped to be read only cannot be locked, and may have to be read again each time."""
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, ops.QuantizedTensor):
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))


def _discard(patcher: Any) -> None:
    """Take a model that nobody else uses from the device, and its weights from memory."""
    with torch.inference_mode():
        patcher.offload_device = torch.device("meta")  # or all of it would be copied back first
        for one in [one for one in model_management.current_loaded_models if one.model is patcher]:
            one.model_unload()
            model_management.current_loaded_models.remove(one)


def _with_gradient(_: Any, *args: Any, **kwargs: Any) -> Any:
    """PyTorch's attention, whichever the user has chosen: SageAttention has no backward, and says nothing."""
    return attention_pytorch(*args, **kwargs)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict; where it has no data (ComfyUI-GGUF gives sizes alone) the packed weights themselves."""
    own = dict(module.named_parameters())
    found = {name: own.get(name) if t.is_meta else t for name, t in module.state_dict().items()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def encode_prompt(clip: Any, prompt: str, image: Tensor | None) -> list[list[Any]]:
    """CONDITIONING of a prompt, with what Qwen's encoder sees of the image (1,H,W,3): as in core's node for
    Qwen-Image-Edit 2509 and later.
    """
    if image is not None and isinstance(clip.tokenizer, QwenImageTokenizer):
        from comfy_extras.nodes_qwen import TextEncodeQwenImageEditPlus

        found: list[list[Any]] = TextEncodeQwenImageEditPlus.execute(clip, prompt, image1=image).args[0]
        return found
    encoded: list[list[Any]] = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return encoded
