"""Links, pipes, damaged tars: a tree is read whole, or refused with the file and what is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pfl_flower.data.image_folder import read_tree
from pfl_flower.data.image_listing import OTHERS
from pfl_flower.support.errors import DataError
from tests.support.images import Spoil, chain, link, pack, rename, write_tree


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFL_CACHE_DIR", str(tmp_path / "cache"))


LINKS: dict[str, tuple[Spoil, str]] = {
    "image": (
        link("train/dog/0001.png", "/nowhere/1.png"),
        r"train/dog/0001.png: a link to /nowhere/1.png, which is not there; expected an image$",
    ),
    "class": (link("train/ant", "/nowhere"), r"train/ant: a link to /nowhere.* a class's folder$"),
    "part": (
        chain(rename("test", "exam"), link("test", "/nowhere")),
        r"test: a link to /nowhere, which is not there; expected a folder$",
    ),
    "to itself": (link("train/dog/0001.png", "0001.png"), r"train/dog/0001.png: "),
    "to a folder": (
        link("train/dog/x.png", "../cat"),
        r"x.png: expected an image, and it is no file",
    ),
}


@pytest.mark.parametrize("case", LINKS)
def test_links_to_nowhere_are_named(case: str, tmp_path: Path) -> None:
    spoil, message = LINKS[case]
    tree = write_tree(tmp_path / "tree")
    spoil(tree)
    with pytest.raises(DataError, match=message) as caught:
        read_tree(tree)
    assert "\n" not in str(caught.value)


def test_links_that_lead_somewhere_are_followed(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "elsewhere")
    linked = tmp_path / "linked"
    (linked / "train").mkdir(parents=True)
    (linked / "test").symlink_to(tree / "test")
    (linked / "train/dog").symlink_to(tree / "train/dog")
    (linked / "train/cat").mkdir()
    for image in (tree / "train/cat").iterdir():
        (linked / "train/cat" / image.name).symlink_to(image)
    (linked / "train/cat/deeper").symlink_to(linked / "train")  # a circle
    images = read_tree(linked)
    assert torch.equal(images.train, read_tree(tree).train)
    assert [one.what for one in images.left_out] == [OTHERS]


@pytest.mark.parametrize(("kind", "target"), [("hard", "train/cat/0000.png"), ("soft", "0000.png")])
def test_a_tar_whose_images_are_links(kind: str, target: str, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    (tree / "train/cat/0001.png").unlink()
    tar = pack(tree, tmp_path / "tree.tar")
    for goal, message in ((target, ""), ("missing.png", "0001.png is a link to what is no file")):
        with tarfile.open(tar, "a") as archive:
            member = tarfile.TarInfo("train/cat/0001.png")
            member.type = tarfile.LNKTYPE if kind == "hard" else tarfile.SYMTYPE
            member.linkname = "./" + goal if kind == "hard" else goal
            archive.addfile(member)
        if message:
            with pytest.raises(DataError, match=message):
                read_tree(tar)
        else:
            assert torch.equal(read_tree(tar).train[1], read_tree(tar).train[0])


def test_a_pipe_among_the_images_is_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    os.mkfifo(tree / "train/cat/pipe.png")
    with pytest.raises(DataError, match=r"pipe.png: expected an image, and it is no file$"):
        read_tree(tree)
    images = read_tree(pack(tree, tmp_path / "tree.tar"))
    assert [str(one) for one in images.left_out] == [
        "entries that are no files: 1 (train/cat/pipe.png)"
    ]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    (tree / "train/cat/0000.png").rename(tree / "train/cat" / os.fsdecode(b"\xff.png"))
    (tree / "train/dog" / os.fsdecode(b"\xfe.txt")).write_text("no image")
    images = read_tree(tree)
    assert len(images.train) == 6
    assert images.left_out[0].where == "train/dog/\\udcfe.txt"


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = write_tree(tmp_path / "tree")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/dog: cannot be read \(Permission denied\)$"):
        read_tree(tree)


def test_the_key_is_of_the_images_alone(tmp_path: Path) -> None:
    """A note beside the images is told, and makes no embedding be computed again."""
    tree = write_tree(tmp_path / "tree")
    before = read_tree(tree)
    (tree / "train/notes.txt").write_text("cats")
    after = read_tree(tree)
    assert after.key == before.key
    assert (len(before.left_out), len(after.left_out)) == (0, 1)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut after a file": lambda content, last: content[:last],
    "cut in a header": lambda content, last: content[: last + 100],
    "cut in a file": lambda content, last: content[: last + 600],
    "a header that is no header": lambda content, last: (
        content[: last + 150] + bytes([content[last + 150] ^ 1]) + content[last + 151 :]
    ),
    "two in one": lambda content, last: content + content,
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_loses_no_image_unsaid(damage: str, packing: str, tmp_path: Path) -> None:
    """tarfile takes a damaged header for the end."""
    whole = pack(write_tree(tmp_path / "tree"), tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        last = max(member.offset for member in archive if member.isfile())
    place = tmp_path / "damaged.tar"
    place.write_bytes(PACKED[packing](DAMAGE[damage](whole, last)))
    with pytest.raises(DataError, match=r"damaged.tar: broken off \("):
        read_tree(place)
    place.write_bytes(PACKED[packing](whole))
    assert len(read_tree(place).train) == 6


@pytest.mark.parametrize("packing", ["gzip", "bz2", "xz"])
def test_a_cut_packed_tar(packing: str, tmp_path: Path) -> None:
    tar = pack(write_tree(tmp_path / "tree", train=20), tmp_path / "whole.tar")
    content = PACKED[packing](tar.read_bytes())
    for part in (len(content) // 2, len(content) - 3):
        place = tmp_path / f"{part}.tar"
        place.write_bytes(content[:part])
        with pytest.raises(DataError) as caught:
            read_tree(place)
        assert str(place) in str(caught.value)
    place.write_bytes(
        content[: len(content) // 2] + b"\x00" * 20 + content[len(content) // 2 + 20 :]
    )
    with pytest.raises(DataError):
        read_tree(place)


def test_images_that_do_not_fit_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    tree = write_tree(tmp_path / "tree")
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(DataError, match=r"^10 images of 32 x 32 take 0 GB of memory, more than"):
        read_tree(tree)


def test_an_image_that_says_it_is_larger_than_it_is(tmp_path: Path) -> None:
    tree, buffer = write_tree(tmp_path / "tree"), io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "PNG")
    (tree / "train/cat/0001.png").write_bytes(buffer.getvalue()[:-20])
    with pytest.raises(DataError, match=r"train/cat/0001.png: not an image that can be read"):
        read_tree(tree)
