"""What travels between the pack's nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from comfy_api.latest import io

from ..collection.catalogue import Catalogue, Effect
from ..collection.lora_weights import LoraWeights

CATEGORY = "CollectionLoRA"
TRAINING = f"{CATEGORY}/training"
CollectionSocket = io.Custom("COLLECTION_LORA")
EffectSocket = io.Custom("COLLECTION_LORA_EFFECT")
TeachersSocket = io.Custom("COLLECTION_LORA_TEACHERS")
EffectImagesSocket = io.Custom("COLLECTION_LORA_EFFECT_IMAGES")
GeneralImagesSocket = io.Custom("COLLECTION_LORA_GENERAL_IMAGES")
SettingsSocket = io.Custom("COLLECTION_LORA_SETTINGS")

ATTACHMENT = "collectionlora"
"""Under this key a MODEL with a collection on it carries the collection's catalogue."""


@dataclass(frozen=True, eq=False)
class Collection:
    """A collection in memory; the file it came from is `name`."""

    name: str
    weights: LoraWeights
    catalogue: Catalogue
    others: Mapping[str, str] = field(default_factory=dict)
    """What other programs wrote into the file's header."""


@dataclass(frozen=True)
class ChosenEffect:
    """What to do with a picture: one effect, or A then B; `prompt` is what the model is told."""

    effects: tuple[Effect, ...]
    prompt: str
    long_side: int
    """Pixels that the collection was trained at."""
    reference_method: str = ""
    """How it was shown the source, where the model does not say."""
