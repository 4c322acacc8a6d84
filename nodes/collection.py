"""Load, look into and save a collection."""

from __future__ import annotations

import logging
from typing import Any

from comfy import sd
from comfy_api.latest import io, ui

from ..collection.catalogue import fingerprint
from ..collection.errors import CollectionError
from ..collection.file import fitted, save_collection
from ..collection.layouts import comfy_tensors, read_lora
from ..collection.tensors import read_header
from ..training.lora import linear_shapes
from .files import BUILT_IN, catalogue_of, collection_names, collection_path, tell_saved
from .places import new_file
from .sockets import ATTACHMENT, CATEGORY, Collection, CollectionSocket


class LoadCollection(io.ComfyNode):
    """A collection file on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraLoad",
            display_name="Load Collection",
            category=CATEGORY,
            description="Puts a collection (many effects and few-step sampling in one LoRA) on a model.",
            search_aliases=["collection lora", "effects", "lora loader", "50 effects"],
            inputs=[
                io.Model.Input("model", tooltip="The base the collection was distilled on."),
                io.Combo.Input(
                    "file",
                    options=collection_names(),
                    default=BUILT_IN,
                    tooltip="A file of models/loras. The built-in one belongs to Pocket Model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    tooltip="1 is what was trained; few-step sampling goes down with it.",
                ),
                io.Combo.Input(
                    "other_base",
                    options=["refuse", "warn"],
                    default="refuse",
                    advanced=True,
                    tooltip="What to do when the collection was distilled on a model of another architecture "
                    "or size than the one given.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the collection on it."),
                CollectionSocket.Output(display_name="collection", tooltip="Its effects, for Choose Effect."),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """In place of core's look into the list, which knows no name of a workflow from Windows. None comes
        for a linked input."""
        try:
            _ = file and collection_path(file)
        except CollectionError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, model: Any = None, file: str | None = "", **_: Any) -> Any:
        """A file that was written anew is loaded anew. None comes for a linked input, of any file."""
        return [_changed(name) for name in ([file] if file is not None else collection_names())]

    @classmethod
    def execute(cls, model: Any, file: str, strength: float, other_base: str) -> io.NodeOutput:
        catalogue = catalogue_of(file)
        shapes = linear_shapes(model.model.diffusion_model)
        fits = catalogue.fits(shapes)
        if not fits:
            message = (
                f"{file} was distilled on {_base(catalogue.base)}, but this model is "
                f"{_base(fingerprint(shapes, type(model.model).__name__))}; load that base"
            )
            if other_base == "refuse":
                raise CollectionError(f"{message}, or set other_base to warn")
            logging.warning("CollectionLoRA: %s", message)
        path = collection_path(file)
        weights = read_lora(path, shapes if fits else None).copied()
        patched, _ = sd.load_lora_for_models(model, None, comfy_tensors(weights), strength, 0)
        patched.set_attachments(ATTACHMENT, catalogue)
        return io.NodeOutput(patched, Collection(file, weights, catalogue, read_header(path).metadata))


def _changed(file: str) -> Any:
    """Something that differs once a file has been written anew, or is there."""
    try:
        return collection_path(file).stat().st_mtime_ns
    except (CollectionError, OSError):
        return file


class CollectionInfo(io.ComfyNode):
    """What is in a collection, in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraInfo",
            display_name="Collection Info",
            category=CATEGORY,
            description="Lists a collection's effects with their prompts, its sampler sigmas, base and "
            "training.",
            search_aliases=["effects", "catalogue", "metadata", "trigger words"],
            is_output_node=True,
            inputs=[CollectionSocket.Input("collection", tooltip="From Load Collection.")],
            outputs=[io.String.Output(display_name="text", tooltip="What the node shows.")],
        )

    @classmethod
    def execute(cls, collection: Collection) -> io.NodeOutput:
        catalogue = collection.catalogue
        lines = [f"{collection.name}: {len(catalogue.effects)} effects on {_base(catalogue.base)}"]
        lines.append(f"{len(catalogue.sigmas) - 1} steps: " + ", ".join(f"{s:.4g}" for s in catalogue.sigmas))
        training = {k: v for k, v in catalogue.training.items() if not isinstance(v, dict)}
        lines += [f"training.{key}: {value}" for key, value in training.items()]
        for effect in catalogue.effects:
            lines.append(f"\n{effect.title}  [{effect.name}]  {effect.category}\n    {effect.prompt}")
        text = "\n".join(lines)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


class SaveCollection(io.ComfyNode):
    """A collection to a file of the LoRA folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CollectionLoraSave",
            display_name="Save Collection",
            category=CATEGORY,
            description="Writes a collection to models/loras, where every LoRA loader finds it.",
            search_aliases=["save lora", "export collection"],
            is_output_node=True,
            inputs=[
                CollectionSocket.Input("collection", tooltip="From Distil Collection or Load Collection."),
                io.String.Input(
                    "filename",
                    default="collections/my collection",
                    tooltip="Below models/loras, without ending; folders are made. An existing file is kept: "
                    "the new one gets a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
        )

    @classmethod
    def execute(cls, collection: Collection, filename: str) -> io.NodeOutput:
        path, _ = new_file(filename)
        catalogue = fitted(collection.catalogue, collection.weights, collection.others)
        save_collection(path, collection.weights, catalogue, collection.others)
        tell_saved()
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved: {path}"))


def _base(base: dict[str, Any]) -> str:
    name = base.get("name") or base["architecture"]
    return f"{name} ({base.get('blocks', '?')} blocks, {base['hash'].removeprefix('sha256:')[:12]})"
