"""Images as users see them: their pixels, or their embeddings by a trained network (Appendix J)."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import torch
from torch import Tensor

from pfl_flower.data.image_folder import ImageSet
from pfl_flower.data.image_sets import read_images
from pfl_flower.data.sources import Images
from pfl_flower.data.spec import DataSpec
from pfl_flower.data.vgg import LEAST_PIXELS, VGG13, load_weights, unit
from pfl_flower.support.console import say
from pfl_flower.support.errors import DataError
from pfl_flower.support.folders import cache_folder, data_folder, own_path
from pfl_flower.support.tensor_files import load_tensors, save_tensors

BATCH = 250
SAY_SECONDS = 20.0


def pixels(spec: DataSpec) -> Images:
    """Return images as they are; they stay bytes until they are drawn.

    Raises
    ------
    DataError
        If the images cannot be had.
    """
    images = read_images(spec.name, data_folder(spec.data_dir))
    train, test = images.train.flatten(1), images.test.flatten(1)
    return _source(images, train, test, images.key, spec, tuple(images.train.shape[1:]))


def embedded(spec: DataSpec) -> Images:
    """Return images as ``embedding-weights`` sees them.

    Embeddings stay float16 until they are drawn: 410 MB at full size, mapped from the cache,
    against 2 GB of augmented float64.

    Raises
    ------
    DataError
        If the images or the weights cannot be had.
    """
    images = read_images(spec.name, data_folder(spec.data_dir))
    return _source(images, *embeddings(images, weights_file(spec.weights)), spec)


def _source(
    images: ImageSet,
    train: Tensor,
    test: Tensor,
    key: str,
    spec: DataSpec,
    shape: tuple[int, ...] = (),
) -> Images:
    return Images(
        (train, images.train_labels),
        (test, images.test_labels),
        seed=spec.seed,
        label_noise=spec.label_noise,
        key=key,
        left_out=images.left_out,
        shape=shape,
    )


def weights_file(configured: str = "") -> Path:
    """Return the network's file: the configured one, or else what ``train-vgg`` writes."""
    if configured:
        return own_path("embedding-weights", configured)
    return cache_folder() / "weights" / "vgg13_bn-cifar10.pt"


def embeddings(images: ImageSet, weights: Path) -> tuple[Tensor, Tensor, str]:
    """Return the embeddings ``(n, 4096)`` of train and test in float16, and their key.

    They are computed once, on the GPU if there is one, and kept in the cache folder under a key
    derived from the images' and from the content of the weights' file.

    Raises
    ------
    DataError
        If the weights are not a VGG13-BN's, the images too small, or an embedding exceeds float16.
    """
    key = hashlib.sha256(f"{images.key}|{file_hash(weights)}".encode()).hexdigest()[:16]
    cached = cache_folder() / "embeddings" / f"{key}.pt"
    kept = load_tensors(cached)
    if kept is None or set(kept) != {"train", "test"}:
        network, size = load_weights(weights), images.train.shape[2:]
        if min(size) < LEAST_PIXELS:
            raise DataError(
                f"images of {size[1]} x {size[0]}: expected at least {LEAST_PIXELS} x "
                f"{LEAST_PIXELS} for embeddings"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        count = len(images.train) + len(images.test)
        say(f"embedding {count:,} images by {weights} on {device}, kept in {cached}")
        parts = {"train": images.train, "test": images.test}
        save_tensors(cached, {name: embed(network, part, device) for name, part in parts.items()})
        kept = torch.load(cached, weights_only=True, mmap=True)
    return kept["train"], kept["test"], key


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file of weights.

    Raises
    ------
    DataError
        If there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        raise DataError(
            f"embedding-weights = {path}: no such file; python -m experiments train-vgg trains "
            "one, or name a file of weights"
        ) from None


@torch.no_grad()
def embed(network: VGG13, images: Tensor, device: torch.device) -> Tensor:
    """Return the embeddings of bytes ``(n, 3, h, w)``, ``(n, 4096)`` in float16, on the CPU.

    Raises
    ------
    DataError
        If one is not finite in float16.
    """
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    found = torch.empty((len(images), network.width), dtype=torch.float16)
    began = said = time.monotonic()
    # TF32 would make the data depend on the card
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for start in range(0, len(images), BATCH):
            batch = unit(images[start : start + BATCH], device)
            found[start : start + BATCH] = network.embed(batch).to(torch.float16).cpu()
            now, done = time.monotonic(), start + len(batch)
            if now - said > SAY_SECONDS and done < len(images):
                left = (now - began) * (len(images) - done) / done
                say(f"  {done:,} of {len(images):,}, {left / 60:.1f} minutes left")
                said = now
    if not bool(torch.isfinite(found).all()):
        raise DataError("embeddings: not finite in float16; expected weights of a trained network")
    return found
