"""What lies beside the images of a tree is counted and named, or refused: never left out unsaid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfl_flower.data.catalogue import load_source
from pfl_flower.data.image_folder import TRANSPARENT, read_tree
from pfl_flower.data.image_listing import DEEPER, ELSEWHERE, HIDDEN, NO_TEST, OTHERS, UNSORTED
from pfl_flower.data.spec import DataSpec
from pfl_flower.support.errors import DataError
from tests.support.images import Spoil, chain, folder, link, pack, put, rename, write_tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))


def transparent(tree: Path) -> None:
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tree / "train/dog/0001.png")
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tree / "train/dog/0002.png")


LEFT_OUT: dict[str, tuple[Spoil, dict[str, int], str]] = {
    "nothing": (put(), {}, ""),
    "other kinds": (
        put(
            *(f"train/cat/{i}{e}" for i, e in enumerate((".webp", ".bmp", ".tif", ".gif", ".txt")))
        ),
        {OTHERS: 5},
        "train/cat/0.webp, train/cat/1.bmp, train/cat/2.tif, ...",
    ),
    "an ending in capitals": (put("train/cat/x.PNG"), {}, ""),
    "no ending": (put("train/cat/png"), {OTHERS: 1}, "train/cat/png"),
    "a folder deeper": (
        put("train/cat/more/1.png", "train/cat/more/much/2.png"),
        {DEEPER: 2},
        "train/cat/more/1.png, train/cat/more/much/2.png",
    ),
    "beside the classes": (
        put("train/1.png", "test/labels.txt"),
        {UNSORTED: 2},
        "test/labels.txt, train/1.png",
    ),
    "beside train and test": (put("README.txt"), {ELSEWHERE: 1}, "README.txt"),
    "hidden": (put("train/cat/._0.png", "train/.x/1.png"), {HIDDEN: 2}, "train/.x"),
    "a Mac's and a Windows's": (
        put("train/cat/.DS_Store.txt", "train/cat/Thumbs.db"),
        {HIDDEN: 1, OTHERS: 1},
        "train/cat/Thumbs.db",
    ),
    "a class without test images": (
        rename("test/dog", "test/.dog"),
        {NO_TEST: 1, HIDDEN: 1},
        "dog",
    ),
    "transparency": (transparent, {TRANSPARENT: 1}, "train/dog/0001.png"),
    "a link elsewhere": (link("train/cat/x.txt", "nowhere"), {OTHERS: 1}, "train/cat/x.txt"),
    "a hostile name": (
        put("train/cat/\x1b[2J\n[red].txt"),
        {OTHERS: 1},
        "train/cat/\\x1b[2J [red].txt",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("case", LEFT_OUT)
def test_what_is_left_out_is_counted_and_named(case: str, packed: bool, tmp_path: Path) -> None:
    spoil, counts, named = LEFT_OUT[case]
    tree = write_tree(tmp_path / "tree")
    spoil(tree)
    place = pack(tree, tmp_path / "tree.tar") if packed else tree
    source = load_source(DataSpec(f"imagefolder:{place}"))
    for found in (read_tree(place), source):  # as it is read, and as it is kept
        assert {one.what: one.count for one in found.left_out} == counts
        assert named in "; ".join(one.where for one in found.left_out)


WEBP = rename("train/dog/*.png", "train/dog/{stem}.webp")
REFUSED: dict[str, tuple[Spoil, str]] = {
    "only .webp": (
        WEBP,
        r"train/dog holds no .jpg, .jpeg or .png but 3 other files such as train/dog/0000.webp; "
        r"expected images directly in it, or no such folder$",
    ),
    "only .bmp": (rename("train/dog/*.png", "train/dog/{stem}.bmp"), r"such as train/dog/0000.bmp"),
    "only .tif": (rename("train/dog/*.png", "train/dog/{stem}.tif"), r"such as train/dog/0000.tif"),
    "a folder deeper": (
        rename("train/dog/*.png", "train/dog/all/{name}"),
        r"train/dog holds no .* but 3 other files such as train/dog/all/0000.png",
    ),
    "an empty class": (folder("train/ant"), r"train/ant holds no .jpg, .jpeg or .png; expected"),
    "a class of hidden files": (put("train/ant/.1.png"), r"train/ant holds no .* 1 other files"),
    "an empty class in both": (chain(folder("train/a"), folder("test/a")), r"test/a holds no"),
    "an empty test class": (folder("test/ant"), r"test/ant holds no .jpg"),
    "a test class of .webp": (
        rename("test/dog/*.png", "test/dog/{stem}.webp"),
        r"test/dog holds no .jpg, .jpeg or .png but 2 other files such as test/dog/0000.webp",
    ),
    "a tree one folder deeper": (
        chain(rename("train", "all/train"), rename("test", "all/test")),
        r"expected train/CLASS/\*.jpg or \*.png of two classes or more, and test/CLASS/\*, and "
        r"there is all",
    ),
    "classes in capitals": (rename("train", "Train"), r"expected train/CLASS.* there is Train"),
    "no classes": (
        chain(rename("train/*/*", "train/{path.parent.name}{name}"), rename("train/cat", ".a"),
              rename("train/dog", ".b")),
        r"expected train/CLASS.* there is train/cat0000.png",
    ),
    "nothing": (rename("*", ".{name}"), r"expected train/CLASS/\*.jpg or \*.png of two classes"),
}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_would_change_the_classes_is_refused(case: str, packed: bool, tmp_path: Path) -> None:
    spoil, message = REFUSED[case]
    tree = write_tree(tmp_path / "tree")
    read_tree(tree)  # what is kept in the cache does not hide it
    spoil(tree)
    place = pack(tree, tmp_path / "tree.tar") if packed else tree
    with pytest.raises(DataError, match=message) as caught:
        load_source(DataSpec(f"imagefolder:{place}"))
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)
