"""The model that ships with the pack."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.hosts.comfy_pocket import pocket_clip, pocket_model, pocket_vae
from .sockets import CATEGORY


class PocketModel(io.ComfyNode):
    """A whole Qwen-Image-Edit of pocket size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraPocketModel",
            display_name="Pocket Model",
            category=CATEGORY,
            description="A tiny Qwen-Image-Edit that ships with the pack: applies an effect in seconds and "
            "distils in minutes, on a CPU too. Pictures have 128 x 128 pixels; it shows how things work, not "
            "how well the real model does.",
            search_aliases=["pocket", "demo model", "test model", "checkpoint loader"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model", tooltip="A Qwen-Image-Edit of 6.9M parameters."),
                io.Clip.Output(display_name="clip", tooltip="Its text encoder."),
                io.Vae.Output(display_name="vae", tooltip="Its autoencoder."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(pocket_model(), pocket_clip(), pocket_vae())
