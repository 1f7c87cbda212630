"""Fine-tune a segmentation model of segmentation_models_pytorch on a conv-stem ViT; start here, and change the data.

    pip install segmentation-models-pytorch
    python recipes/segmentation.py FOLDER --encoder vit_s16_convstem_pyramid --decoder UPerNet --pretrained

FOLDER has images/NAME.png and masks/NAME.png; a mask's pixels are class numbers, 255 where nothing is known. Every
fifth image, by name, is held out. Sides are cropped to multiples of 32, for which smp asks.

A segmentation batch is small (2 to 8 images), too small for BatchNorm: the stem is frozen, or has no norm
(``--train-stem`` trains one without norm along with the rest).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

import convstem

UNKNOWN = 255


class Folder(Dataset):
    """Pairs of an image [3, side, side] in 0..1 and a mask [side, side] of class numbers."""

    def __init__(self, root: Path, held_out: bool, side: int) -> None:
        names = sorted(path.name for path in (root / "images").iterdir())
        self.names = [name for index, name in enumerate(names) if (index % 5 == 4) == held_out]
        self.root, self.held_out, self.side = root, held_out, side

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one window: random for training, the middle one for validation."""
        name = self.names[index]
        image = pil_to_tensor(Image.open(self.root / "images" / name).convert("RGB")).float() / 255
        mask = pil_to_tensor(Image.open(self.root / "masks" / name))[0].long()
        spare = [size - self.side for size in mask.shape]
        if min(spare) < 0:
            raise SystemExit(f"{name} is {mask.shape[1]}x{mask.shape[0]} pixels: pass a --size of at most its sides")
        top, left = (s // 2 if self.held_out else int(torch.randint(s + 1, ())) for s in spare)
        window = (slice(top, top + self.side), slice(left, left + self.side))
        return image[(slice(None), *window)], mask[window]


def build(args: argparse.Namespace) -> nn.Module:
    """Return the segmentation model, its stem frozen or without norm."""
    options = {"stem_norm": "none"} if args.train_stem else {}
    model = smp.create_model(
        args.decoder,
        f"tu-{args.encoder}",
        encoder_weights=True if args.pretrained else None,
        classes=args.classes,
        **options,
    )
    return model if args.train_stem else convstem.freeze_stem(model)


def groups(model: nn.Module, rate: float) -> list[dict]:
    """Return the optimizer's groups: the pretrained encoder learns ten times slower than the fresh decoder."""
    encoder = {id(p) for p in model.encoder.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    slow, fast = ([p for p in trained if (id(p) in encoder) == inside] for inside in (True, False))
    return [{"params": slow, "lr": rate / 10}, {"params": fast, "lr": rate}]


@torch.no_grad()
def mean_iou(model: nn.Module, loader: DataLoader, classes: int, normalise: nn.Module, device: str) -> float:
    """Return the mean IoU over the classes that occur, in per cent."""
    both = torch.zeros(classes, classes)
    for images, masks in loader:
        found = model.eval()(normalise(images.to(device))).argmax(1).cpu()
        known = masks != UNKNOWN
        both += torch.bincount(masks[known] * classes + found[known], minlength=classes**2).view(classes, classes)
    union = both.sum(0) + both.sum(1) - both.diag()
    return float(100 * (both.diag() / union)[union > 0].mean())


def main() -> None:
    """Train, and print the mean IoU on the held-out images after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--encoder", default="vit_s16_convstem_pyramid", help="NAME_pyramid, with a tag or without")
    parser.add_argument("--decoder", default="UPerNet", help="any of smp's: Unet, FPN, UPerNet, Segformer, ...")
    parser.add_argument("--pretrained", action="store_true", help="start from the encoder's pretrained weights")
    parser.add_argument("--train-stem", action="store_true", help="train the stem too, without norm")
    parser.add_argument("--size", type=int, default=512, help="side of the square windows, a multiple of 32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="where to save the model, as smp saves it")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build(args).to(device)
    cfg = model.encoder.model.pretrained_cfg
    normalise = Normalise(cfg["mean"], cfg["std"]).to(device)
    loaders = [
        DataLoader(
            Folder(args.folder, held_out, args.size), args.batch_size, shuffle=not held_out, drop_last=not held_out
        )
        for held_out in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups(model, args.lr), weight_decay=0.05)
    loss_of = smp.losses.DiceLoss("multiclass", ignore_index=UNKNOWN)
    cross_entropy = nn.CrossEntropyLoss(ignore_index=UNKNOWN)
    for epoch in range(args.epochs):
        for images, masks in loaders[0]:
            logits = model.train()(normalise(images.to(device)))
            loss = loss_of(logits, masks.to(device)) + cross_entropy(logits, masks.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: mean IoU {mean_iou(model, loaders[1], args.classes, normalise, device):.1f} %")
    if args.out:
        model.save_pretrained(args.out)


class Normalise(nn.Module):
    """Subtracts the mean and divides by the standard deviation with which the encoder was trained."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [batch, 3, height, width] in 0..1 to normalised ones."""
        return (images - self.mean) / self.std


if __name__ == "__main__":
    main()
