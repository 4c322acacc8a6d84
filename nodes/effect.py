"""Choose an effect, and encode picture and prompt for it."""

from __future__ import annotations

from typing import Any

import torch
from comfy import utils
from comfy_api.latest import io
from torch import Tensor

from ..collection.catalogue import Catalogue
from ..training.hosts.comfy import encode_prompt
from ..training.pictures import fitted_size
from ..training.prompting import COMPOSITION, compose
from .files import BUILT_IN, catalogue_of
from .memo import Memo, content_key
from .sockets import CATEGORY, ChosenEffect, Collection, CollectionSocket, EffectSocket

NONE = "none"
REFERENCE_METHODS = ("index_timestep_zero",)
"""Of core's *Edit Model Reference Method*, beside the default, those that an edition of Qwen-Image-Edit was
trained with: 2511."""
_texts, _latents = Memo(256), Memo(64)


LONG_SIDE = io.Int.Input(
    "long_side",
    default=1024,
    min=64,
    max=4096,
    step=8,
    tooltip="Pixels of the longer side, of reference and result alike: results of another size drift. "
    "Pocket Model: 128.",
)
SIZE = io.Int.Input(
    "long_side",
    default=0,
    min=0,
    max=4096,
    step=8,
    tooltip="Pixels of the longer side, of reference and result alike: results of another size drift. 0: as "
    "the collection was trained, 1024 where its file does not say. Pocket Model: 128.",
)
SHAPE = io.Combo.Input(
    "shape",
    options=["keep", "square"],
    default="keep",
    tooltip="keep: the picture's own proportions. square: its central square. Pocket Model knows squares "
    "only.",
)


class ChooseEffect(io.ComfyNode):
    """One effect of a collection, or two in a row."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [effect.name for effect in catalogue_of(BUILT_IN).effects]
        return io.Schema(
            node_id="CollectionLoraEffect",
            display_name="Choose Effect",
            category=CATEGORY,
            description="Picks one effect of the collection, or two: the first, then the second on its "
            "result.",
            search_aliases=["effect", "style", "trigger word", "pick effect", "compose effects"],
            inputs=[
                CollectionSocket.Input("collection", tooltip="From Load Collection."),
                io.Combo.Input(
                    "effect",
                    options=names,
                    tooltip="The effects of the connected collection. Its tag and prompt are filled in "
                    "for you.",
                ),
                io.Combo.Input(
                    "then",
                    options=[NONE, *names],
                    default=NONE,
                    tooltip="A second effect on top of the first, in the same picture and the same 8 steps.",
                ),
                io.String.Input(
                    "composition",
                    default=COMPOSITION,
                    advanced=True,
                    tooltip="The instruction for two effects; {first} and {second} stand for their prompts.",
                ),
            ],
            outputs=[
                EffectSocket.Output(display_name="effect", tooltip="For Encode Effect."),
                io.String.Output(display_name="prompt", tooltip="The prompt, for nodes that take text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, effect: Any = None, then: Any = None) -> bool:
        """Any name passes here: which are valid is known when the collection is, and `execute` says so."""
        return True

    @classmethod
    def execute(cls, collection: Collection, effect: str, then: str, composition: str) -> io.NodeOutput:
        catalogue = collection.catalogue
        effects = [catalogue[effect]] if then in ("", NONE) else [catalogue[effect], catalogue[then]]
        prompt = effects[0].prompt
        if len(effects) == 2:
            for field in ("{first}", "{second}"):
                if field not in composition:
                    raise ValueError(
                        f"composition {composition!r} lacks {field}; the default is {COMPOSITION!r}"
                    )
            prompt = compose(prompt, effects[1].prompt, composition)
        chosen = ChosenEffect(tuple(effects), prompt, catalogue.long_side, method_of(catalogue))
        return io.NodeOutput(chosen, prompt)


class EncodeEffect(io.ComfyNode):
    """Picture and effect to what the sampler wants."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraEncode",
            display_name="Encode Effect",
            category=CATEGORY,
            description="Sizes the picture as the collection was trained and encodes it with the "
            "effect's prompt.",
            search_aliases=["text encode", "reference latent", "qwen image edit", "vae encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="The base's text encoder."),
                io.Vae.Input("vae", tooltip="The base's autoencoder."),
                io.Image.Input("image", tooltip="The picture to edit. A batch is edited picture by picture."),
                EffectSocket.Input("effect", tooltip="From Choose Effect."),
                SIZE,
                io.Int.Input(
                    "multiple",
                    default=32,
                    min=8,
                    max=128,
                    step=8,
                    advanced=True,
                    tooltip="Both sides are multiples of this; the rest is cropped away evenly.",
                ),
                SHAPE,
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="Prompt and reference picture."),
                io.Latent.Output(display_name="latent", tooltip="Empty, of the reference's size."),
                io.Image.Output(display_name="image", tooltip="The picture as the model sees it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        vae: Any,
        image: Tensor,
        effect: ChosenEffect,
        long_side: int,
        multiple: int,
        shape: str,
    ) -> io.NodeOutput:
        image = resized(image, long_side or effect.long_side, multiple, shape == "square")
        positive, latent = encode(clip, vae, image, effect.prompt, effect.reference_method)
        return io.NodeOutput(positive, {"samples": torch.zeros_like(latent)}, image)


def multiple_for(long_side: int) -> int:
    """What both sides are multiples of, where a node does not ask: 32 as in training, 16 for small ones."""
    return 32 if long_side >= 512 else 16


def resized(image: Tensor, long_side: int, multiple: int, square: bool) -> Tensor:
    """IMAGE (B,H,W,C) -> (B,h,w,3), cropped evenly to the right proportions."""
    image = image[..., :3]
    width, height = fitted_size(image.shape[2], image.shape[1], long_side, multiple, square)
    if image.shape[1:3] == (height, width):
        return image
    scaled: Tensor = utils.common_upscale(image.movedim(-1, 1), width, height, "lanczos", "center")
    return scaled.movedim(1, -1).clamp(0, 1)


def method_of(catalogue: Catalogue) -> str:
    """How the collection was shown the source; "" as the model says."""
    said = catalogue.training.get("reference_method")
    return said if said in REFERENCE_METHODS else ""


def encode(
    clip: Any, vae: Any, image: Tensor, prompt: str, reference_method: str = ""
) -> tuple[list[list[Any]], Tensor]:
    """CONDITIONING with reference latents, and these latents. Both are remembered: going back to an effect or
    a picture costs nothing.
    """
    if clip is None:
        raise ValueError("clip is empty: its file holds no text encoder; load the one of this model")
    vae.throw_exception_if_invalid()
    words, parts = [], []
    for one in torch.split(image, 1):
        picture = content_key(one)
        clip_key = (clip.patcher.patches_uuid, clip.layer_idx, repr(clip.tokenizer_options))
        text_key = (clip_key, prompt, picture)
        words.append(
            _texts.get(clip.cond_stage_model, text_key, lambda one=one: encode_prompt(clip, prompt, one))
        )
        parts.append(_latents.get(vae.first_stage_model, picture, lambda one=one: vae.encode(one)))
    latents = torch.cat(parts)
    more: dict[str, Any] = {"reference_latents": [latents]}
    if reference_method:
        more["reference_latents_method"] = reference_method
    # One prompt and one size: as many tokens each. There are several where hooks change with the steps.
    conditioning = [
        [torch.cat([cond for cond, _ in same]), {**same[0][1], **more}] for same in zip(*words, strict=True)
    ]
    return conditioning, latents
