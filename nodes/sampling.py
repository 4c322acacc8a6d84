"""Sample a collection in the few steps it was trained for."""

from __future__ import annotations

from typing import Any

import torch
from comfy import model_management, sample, samplers
from comfy_api.latest import io
from torch import Tensor

from ..collection.errors import CollectionError
from ..training.flow import fewer_sigmas
from .sockets import ATTACHMENT, CATEGORY

STEPS = io.Int.Input(
    "steps",
    default=8,
    min=1,
    max=64,
    tooltip="8 is what collections are trained for, unless Collection Info says otherwise; fewer are faster "
    "and softer, more change nothing.",
)


class CollectionSampler(io.ComfyNode):
    """Everything a sampler needs, in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraSampler",
            display_name="Collection Sampler",
            category=CATEGORY,
            description="Samples with the collection's own schedule: one model evaluation a step, no "
            "negative prompt.",
            search_aliases=["ksampler", "few step", "lcm", "lightning", "8 steps"],
            inputs=[
                io.Model.Input("model", tooltip="With a collection on it, from Load Collection."),
                io.Conditioning.Input("positive", tooltip="From Encode Effect."),
                io.Latent.Input("latent", tooltip="From Encode Effect: it gives the size."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="Another number, another result.",
                ),
                STEPS,
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, latent: dict[str, Any], seed: int, steps: int
    ) -> io.NodeOutput:
        return io.NodeOutput(sample_latent(model, positive, latent, seed, collection_sigmas(model, steps)))


class CollectionSigmas(io.ComfyNode):
    """The collection's schedule for core's own samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraSigmas",
            display_name="Collection Sigmas",
            category=CATEGORY,
            description="The collection's schedule for SamplerCustom; use it with the sampler lcm and cfg 1.",
            search_aliases=["sigmas", "scheduler", "lcm"],
            inputs=[io.Model.Input("model", tooltip="With a collection on it, from Load Collection."), STEPS],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="From 1 to 0.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int) -> io.NodeOutput:
        return io.NodeOutput(collection_sigmas(model, steps))


def collection_sigmas(model: Any, steps: int) -> Tensor:
    """(steps + 1,) of the collection on a MODEL. Raises CollectionError where there is none."""
    catalogue = model.get_attachment(ATTACHMENT)
    if catalogue is None:
        raise CollectionError("this model has no collection on it; put Load Collection before it")
    return torch.tensor(fewer_sigmas(catalogue.sigmas, steps))


def sample_latent(
    model: Any, positive: Any, latent: dict[str, Any], seed: int, sigmas: Tensor
) -> dict[str, Any]:
    """LATENT, as core's SamplerCustom makes it with the sampler lcm and cfg 1: the same numbers."""
    import latent_preview
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    ratios = [latent.get(f"downscale_ratio_{of}") for of in ("spacial", "temporal")]
    empty = sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    latent = {name: part for name, part in latent.items() if not name.startswith("downscale_ratio_")}
    latent["samples"] = empty
    guider = samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    made = guider.sample(
        Noise_RandomNoise(seed).generate_noise(latent),
        empty,
        samplers.sampler_object("lcm"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        seed=seed,
    )
    # it comes as it was sampled: on the device, where it would stay
    made = made.to(model_management.intermediate_device(), model_management.intermediate_dtype())
    return {**latent, "samples": made}
