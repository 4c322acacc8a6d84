"""All effects of a collection on one picture."""

from __future__ import annotations

import re
from typing import Any

import torch
from comfy import utils
from comfy_api.latest import io
from torch import Tensor

from ..training.pictures import to_pil, to_tensor
from ..training.sheets import named_grid
from .effect import SHAPE, SIZE, encode, method_of, multiple_for, resized
from .gallery import keep_own_picture, tell_progress
from .sampling import STEPS, collection_sigmas, sample_latent
from .sockets import CATEGORY, Collection, CollectionSocket


class ContactSheet(io.ComfyNode):
    """A picture in every effect, with names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraContactSheet",
            display_name="Contact Sheet",
            category=CATEGORY,
            description="Applies all effects of a collection, or those you name, to one picture.",
            search_aliases=["grid", "all effects", "preview effects", "xy plot"],
            inputs=[
                io.Model.Input("model", tooltip="From Load Collection."),
                io.Clip.Input("clip", tooltip="The base's text encoder."),
                io.Vae.Input("vae", tooltip="The base's autoencoder."),
                io.Image.Input("image", tooltip="The first picture of a batch is taken."),
                CollectionSocket.Input("collection", tooltip="From Load Collection."),
                io.String.Input(
                    "effects",
                    default="",
                    tooltip="Names or titles with commas between; empty: all. Collection Info lists them.",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, tooltip="The same for every effect."),
                STEPS,
                SIZE,
                SHAPE,
                io.Boolean.Input(
                    "for_gallery",
                    default=False,
                    tooltip="Keep the results as pictures for Choose Effect's gallery: on this machine only, "
                    "never in a file.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="Source and results with their names."),
                io.Image.Output(
                    display_name="images", tooltip="The results as a batch, in the sheet's order."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, for_gallery: bool = False, **_: Any) -> Any:
        """Pictures are kept anew each time: others may have been kept since."""
        return float("nan") if for_gallery else ""

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        image: Tensor,
        collection: Collection,
        effects: str,
        seed: int,
        steps: int,
        long_side: int,
        shape: str,
        for_gallery: bool,
    ) -> io.NodeOutput:
        catalogue = collection.catalogue
        names = [name.strip() for name in re.split("[,，]", effects) if name.strip()]
        known = {effect.title: effect.name for effect in catalogue.effects}
        known |= {effect.name: effect.name for effect in catalogue.effects}
        chosen = [catalogue[known.get(name, name)] for name in names] or list(catalogue.effects)
        long_side = long_side or catalogue.long_side
        source = resized(image[:1], long_side, multiple_for(long_side), shape == "square")
        sigmas = collection_sigmas(model, steps)
        bar, made = utils.ProgressBar(len(chosen)), []
        for done, effect in enumerate(chosen, start=1):
            positive, latent = encode(clip, vae, source, effect.prompt, method_of(catalogue))
            samples = sample_latent(model, positive, {"samples": torch.zeros_like(latent)}, seed, sigmas)[
                "samples"
            ]
            made.append(vae.decode(samples).flatten(0, -4))
            bar.update(1)
            if for_gallery:
                first, drawn = (to_pil(one[0].movedim(-1, 0)) for one in (source, made[-1]))
                keep_own_picture(collection.name, catalogue, effect.name, first, drawn)
                tell_progress(collection.name, done, len(chosen))
        results = torch.cat(made)
        pictures = [picture.movedim(-1, 0) for picture in (source[0], *results)]
        sheet = named_grid(["source", *(effect.title for effect in chosen)], pictures)
        return io.NodeOutput(to_tensor(sheet).movedim(0, -1)[None], results)
