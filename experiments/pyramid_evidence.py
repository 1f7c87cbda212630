"""What the stem's maps at strides 2, 4 and 8 bring to a small decoder on a frozen, real, pretrained trunk.

    python -m tools.dinov2_vit_small DINOV2.safetensors
    python -m experiments.pyramid_evidence DINOV2.safetensors --out RESULTS --wheels FOLDER     # resumable
    python -m experiments.pyramid_evidence_report RESULTS

The trunk is DINOv2's ViT-S (as patch 16), transplanted onto our default stem, and frozen: its maps are computed once.
A decoder of a few thousand parameters is trained on them, the same number of steps in every arm:

    trunk        the map at stride 16 only, which is all that the patchify model has
    stem         with the transplanted stem's maps at strides 2, 4 and 8
    random stem  with the maps of the same stem at random, frozen too: is it these maps, or any filters?
    pixels       with the image itself, unshuffled to strides 2, 4 and 8: is it these maps, or any detail?

Each run is one line of runs.jsonl: task, arm, seed and the figures on held-out images. Segmentation: mean IoU of the
foreground classes, and the F1 of their boundaries within one pixel; denoising: PSNR in dB.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

import convstem
from convstem.stem.find import find_stem
from convstem.stem.init import init_stem
from convstem.stem.norms import stem_norm
from experiments.pyramid_evidence_data import TASKS, Task, load
from tools import dinov2_vit_small

ARMS = ("trunk", "stem", "random stem", "pixels")
STEPS, BATCH, CROP, WIDTH, RATE = 160, 8, 64, 24, 3e-3
SEEDS = 3


class Decoder(nn.Module):
    """Goes up from the coarsest map to the image's size by factors of two, adding a lateral map where there is one."""

    def __init__(self, channels: list[int], outputs: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) if c else None for c in channels)  # type: ignore[misc]
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) if c else None for c in channels)  # type: ignore[misc]
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in channels[1:])
        self.mixes = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in channels[1:])
        self.head = nn.Conv2d(WIDTH, 4 * outputs, 3, padding=1)

    def forward(self, maps: list[Tensor | None]) -> Tensor:
        """Map [batch, channels, rows, columns], coarsest first, to [batch, outputs, height, width]."""
        x = self.laterals[0](self.norms[0](maps[0]))
        for level in range(1, len(maps)):
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            if maps[level] is not None:
                x = x + self.laterals[level](self.norms[level](maps[level]))
            x = x + functional.gelu(self.mixes[level - 1](self.convs[level - 1](x)))
        return functional.pixel_shuffle(self.head(x), 2)


def backbone(weights: Path) -> nn.Module:
    """Return the transplanted DINOv2 ViT-S, for images of any size."""
    plain = dinov2_vit_small.load_patch16(weights)
    model = timm.create_model("vit_small_patch14_dinov2", patch_size=16, img_size=256, dynamic_img_size=True)
    model.load_state_dict(plain.state_dict())
    return convstem.transplant(model.eval())


@torch.no_grad()
def maps_of(model: nn.Module, images: Tensor, arm: str) -> list[Tensor | None]:
    """Return the maps of all images for an arm, coarsest first, in half precision to fit into memory."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    )
    x = (images - mean) / std
    model = convstem.feature_pyramid(model, (0, 1, 2, 3)).eval()
    fine = [torch.cat([model(part)[str(level)].half() for part in x.split(8)]) for level in (3, 2, 1, 0)]
    if arm == "trunk":
        return [fine[0], None, None, None]
    if arm == "pixels":
        return [fine[0], *(functional.pixel_unshuffle(x, stride).half() for stride in (8, 4, 2))]
    return list(fine)


def crop(
    maps: list[Tensor | None], truth: Tensor, index: Tensor, generator: torch.Generator
) -> tuple[list[Tensor | None], Tensor]:
    """Return one window of some images, and of the same place in all their maps."""
    row, column = (
        16 * int(torch.randint((side - CROP) // 16 + 1, (1,), generator=generator)) for side in truth.shape[-2:]
    )
    window = truth[index][..., row : row + CROP, column : column + CROP]
    cut = []
    for level, m in enumerate(maps):
        s = 16 >> level
        rows, columns = slice(row // s, (row + CROP) // s), slice(column // s, (column + CROP) // s)
        cut.append(None if m is None else m[index][..., rows, columns].float())
    return cut, window


def train(task: Task, maps: list[Tensor | None], seed: int) -> nn.Module:
    """Train a decoder on cached maps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder([0 if m is None else m.shape[1] for m in maps], task.outputs)
    optimizer = torch.optim.AdamW(decoder.parameters(), RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    truth = task.train[1]
    for _ in range(STEPS):
        index = torch.randint(len(truth), (BATCH,), generator=generator)
        cut, window = crop(maps, truth, index, generator)
        loss = functional.cross_entropy if task.is_segmentation else functional.l1_loss
        optimizer.zero_grad()
        loss(decoder(cut), window).backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


@torch.no_grad()
def predict(task: Task, decoder: nn.Module, maps: list[Tensor | None]) -> Tensor:
    """Return classes [n, height, width] or pixels for all images."""
    parts = [decoder([None if m is None else m[i : i + 8].float() for m in maps]) for i in range(0, len(maps[0]), 8)]
    return torch.cat(parts).argmax(1) if task.is_segmentation else torch.cat(parts).clamp(0, 1)


def boundary(mask: Tensor) -> Tensor:
    """Return the pixels of a mask [n, height, width] that touch its outside."""
    return mask & (functional.max_pool2d((~mask)[:, None].float(), 3, 1, 1)[:, 0] > 0)


def near(mask: Tensor) -> Tensor:
    """Return the pixels at most one away from a mask."""
    return functional.max_pool2d(mask[:, None].float(), 3, 1, 1)[:, 0] > 0


def figures(task: Task, prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Return region and boundary quality in per cent, or the PSNR in dB."""
    if not task.is_segmentation:
        return {"PSNR": float(-10 * (prediction - truth).square().mean(dim=(1, 2, 3)).log10().mean())}
    ious, f1s = [], []
    for label in range(1, task.outputs):
        p, t = prediction == label, truth == label
        ious.append(float((p & t).sum() / (p | t).sum()))
        edge_p, edge_t = boundary(p), boundary(t)
        precision = float((edge_p & near(edge_t)).sum() / edge_p.sum().clamp(min=1))
        recall = float((edge_t & near(edge_p)).sum() / edge_t.sum().clamp(min=1))
        f1s.append(2 * precision * recall / max(precision + recall, 1e-9))
    return {"mIoU": 100 * sum(ious) / len(ious), "boundary F1": 100 * sum(f1s) / len(f1s)}


def arm_maps(model: nn.Module, images: Tensor, arm: str) -> list[Tensor | None]:
    """Return an arm's maps; those of the random stem come beside the trunk's own map."""
    if arm != "random stem":
        return maps_of(model, images, arm)
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    stem = find_stem(other)
    init_stem(stem, stem_norm(stem))
    return [maps_of(model, images, "trunk")[0], *maps_of(other, images, "stem")[1:]]


def run(task: Task, name: str, model: nn.Module, out: Path, seeds: int) -> None:
    """Do the runs of one task that are not in the results yet."""
    log = out / "runs.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    done = {tuple(json.loads(line)[key] for key in ("task", "arm", "seed")) for line in lines}
    for arm in ARMS:
        todo = [seed for seed in range(seeds) if (name, arm, seed) not in done]
        if not todo:
            continue
        maps, held_out = (arm_maps(model, images, arm) for images in (task.train[0], task.test[0]))
        for seed in todo:
            start = time.time()
            decoder = train(task, maps, seed)
            prediction = predict(task, decoder, held_out)
            row = {
                "task": name,
                "arm": arm,
                "seed": seed,
                "parameters": sum(p.numel() for p in decoder.parameters()),
                **figures(task, prediction, task.test[1]),
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(row, f"{time.time() - start:.0f} s", flush=True)
            if seed == 0:
                middle = len(prediction) // 2
                torch.save(prediction[middle].to(torch.float16), out / f"{name}-{arm.replace(' ', '_')}.pt")


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="what tools.dinov2_vit_small wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True, help="where the packages with the data are kept")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.wheels.mkdir(parents=True, exist_ok=True)
    model = backbone(args.weights)
    for name in args.tasks:
        run(load(name, args.wheels), name, model, args.out, args.seeds)


if __name__ == "__main__":
    main()
