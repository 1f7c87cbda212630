"""Fine-tune a segmentation model of segmentation_models_pytorch on a conv-stem ViT; replace the data by yours.

    pip install segmentation-models-pytorch
    python recipes/segmentation.py FOLDER --encoder vit_s16_convstem_pyramid --decoder UPerNet --pretrained --out OUT

FOLDER has an image images/NAME.jpg (or .png, ...) and a mask masks/NAME.png for every NAME. A mask's pixels are class
numbers, or 255 for unknown. Every fifth image, by name, is held out and evaluated as a whole.

A segmentation batch of 2 to 8 images is too small for BatchNorm, so the stem is frozen. With ``--train-stem`` it has no
norm instead and is trained too.

Your own encoder: ``--weights my_model``, a folder with config.json and model.safetensors, as written by
``convstem convert``, ``convstem transplant`` and ``timm.models.save_for_hf``. Its config names the encoder.

Afterwards ``smp.from_pretrained(OUT)`` loads the model; normalise its images as here.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pad

import convstem

UNKNOWN = 255
STRIDE = 32
"""smp needs images with sides that are multiples of this."""
FILL = {tv_tensors.Image: 0, tv_tensors.Mask: UNKNOWN}


class Folder(Dataset):
    """Pairs of an image [3, height, width] and a mask [height, width] of class numbers.

    Args:
        root: the folder with images/ and masks/.
        names: the images to use.
        classes: the number of classes, to check the masks.
        transform: of torchvision, for images and masks.
    """

    def __init__(self, root: Path, names: list[str], classes: int, transform: v2.Transform) -> None:
        self.images = {path.stem: path for path in (root / "images").iterdir()}
        self.root, self.names, self.classes, self.transform = root, names, classes, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a transformed pair."""
        name = self.names[index]
        image = v2.functional.pil_to_tensor(Image.open(self.images[name]).convert("RGB"))
        mask = v2.functional.pil_to_tensor(Image.open(self.root / "masks" / f"{name}.png")).long()
        strange = sorted({int(label) for label in mask.unique()} - {*range(self.classes), UNKNOWN})
        if strange or len(mask) != 1 or mask.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"masks/{name}.png must have one channel, the size of its image, and classes from 0 to "
                f"{self.classes - 1} or {UNKNOWN} (see --classes); got shape {list(mask.shape)} for an image "
                f"{list(image.shape)}, and the classes {strange} besides"
            )
        image, mask = self.transform(tv_tensors.Image(image), tv_tensors.Mask(mask[0]))
        return image, mask


def split(root: Path) -> tuple[list[str], list[str]]:
    """Return the names of the training images and of the held-out images."""
    if not (root / "images").is_dir():
        raise SystemExit(f"{root} has no folder images/; it must hold images/NAME.jpg and masks/NAME.png")
    names = sorted(path.stem for path in (root / "images").iterdir())
    missing = [name for name in names if not (root / "masks" / f"{name}.png").exists()]
    if missing:
        raise SystemExit(f"no masks/NAME.png for {len(missing)} of {len(names)} images: {', '.join(missing[:5])}")
    return [name for i, name in enumerate(names) if i % 5 != 4], names[4::5]


def transforms(mean: list[float], std: list[float], size: int) -> tuple[v2.Transform, v2.Transform]:
    """Return the transforms for training (random windows, flips) and validation (whole images, padded)."""
    tensors = v2.Compose(
        [
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    window = v2.RandomCrop(size, pad_if_needed=True, fill=FILL)
    return v2.Compose([window, v2.RandomHorizontalFlip(), tensors]), v2.Compose([PadToStride(), tensors])


class PadToStride(v2.Transform):
    """Pads images and masks at the right and bottom."""

    def transform(self, inpt: Tensor, params: dict) -> Tensor:
        """Pad an image or a mask [..., height, width]; the mask's new pixels are unknown."""
        height, width = inpt.shape[-2:]
        return pad(inpt, [0, 0, -width % STRIDE, -height % STRIDE], fill=FILL[type(inpt)])


def encoder_of(args: argparse.Namespace) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the encoder's name, its preprocessing, and smp's arguments for its weights."""
    if args.weights is None:
        cfg = timm.get_pretrained_cfg(args.encoder).to_dict()
        return args.encoder, cfg, {"encoder_weights": True if args.pretrained else None}
    config = json.loads((args.weights / "config.json").read_text(encoding="utf-8"))
    stated = {name: value for name, value in config.get("model_args", {}).items() if name != "in_chans"}  # smp's own
    file = {"file": str(args.weights / "model.safetensors")}
    options = {**stated, "encoder_weights": True, "pretrained_cfg_overlay": file}
    return f"{config['architecture']}_pyramid", config["pretrained_cfg"], options


def build(args: argparse.Namespace, encoder: str, options: dict[str, Any]) -> nn.Module:
    """Return the segmentation model, with its stem frozen or without a norm."""
    norm = {"stem_norm": "none"} if args.train_stem else {}
    model = smp.create_model(args.decoder, f"tu-{encoder}", classes=args.classes, **{**options, **norm})
    return model if args.train_stem else convstem.freeze_stem(model)


def groups(model: nn.Module, rate: float) -> list[dict]:
    """Return the optimizer's groups: the encoder has a tenth of the new decoder's learning rate."""
    encoder = {id(p) for p in model.encoder.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    slow, fast = ([p for p in trained if (id(p) in encoder) == inside] for inside in (True, False))
    return [{"params": slow, "lr": rate / 10}, {"params": fast, "lr": rate}]


@torch.no_grad()
def mean_iou(model: nn.Module, loader: DataLoader, classes: int, device: str) -> float:
    """Return the mean IoU, in per cent, over the classes that occur."""
    counts = torch.zeros(3, classes)
    model.eval()
    for images, masks in loader:
        found = model(images.to(device)).argmax(1).cpu()
        stats = smp.metrics.get_stats(found, masks, mode="multiclass", ignore_index=UNKNOWN, num_classes=classes)
        counts += torch.stack([part.sum(0) for part in stats[:3]])
    return float(100 * (counts[0] / counts.sum(0)).nanmean())


def train_epoch(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, schedule: object, device: str
) -> float:
    """Train on every image once; return the mean loss."""
    dice = smp.losses.DiceLoss("multiclass", ignore_index=UNKNOWN)
    cross_entropy = nn.CrossEntropyLoss(ignore_index=UNKNOWN)
    losses = []
    model.train()
    for images, masks in loader:
        logits, masks = model(images.to(device)), masks.to(device)
        loss = dice(logits, masks) + cross_entropy(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--encoder", default="vit_s16_convstem_pyramid", help="NAME_pyramid, with a tag or without")
    parser.add_argument("--decoder", default="UPerNet", help="any of smp's: Unet, FPN, UPerNet, Segformer, ...")
    parser.add_argument("--pretrained", action="store_true", help="start from the encoder's pretrained weights")
    parser.add_argument("--weights", type=Path, help="folder of your own encoder, instead of --encoder")
    parser.add_argument("--train-stem", action="store_true", help="train the stem too, without norm")
    parser.add_argument("--size", type=int, default=512, help="side of the training windows, a multiple of 32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the decoder; the encoder's is a tenth")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--out", type=Path, help="where smp saves the model")
    return parser.parse_args()


def main() -> None:
    """Train, and print the mean IoU on the held-out images after every epoch."""
    args = arguments()
    train, held_out = split(args.folder)
    if len(train) < args.batch_size or not held_out:
        raise SystemExit(f"{len(train)} images to train on and {len(held_out)} held out are too few for a batch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder, cfg, options = encoder_of(args)
    model = build(args, encoder, options).to(device)
    windows, whole = transforms(cfg["mean"], cfg["std"], args.size)
    batches = DataLoader(
        Folder(args.folder, train, args.classes, windows),
        args.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=args.workers,
    )
    images = DataLoader(Folder(args.folder, held_out, args.classes, whole), num_workers=args.workers)
    optimizer = torch.optim.AdamW(groups(model, args.lr), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=args.epochs * len(batches)
    )
    for epoch in range(args.epochs):
        loss = train_epoch(model, batches, optimizer, schedule, device)
        iou = mean_iou(model, images, args.classes, device)
        print(f"epoch {epoch + 1}: loss {loss:.3f}, mean IoU {iou:.1f} %", flush=True)
    if args.out:
        model.config["encoder_weights"] = None  # the saved model includes the encoder
        model.config.pop("pretrained_cfg_overlay", None)
        model.save_pretrained(args.out)


if __name__ == "__main__":
    main()
