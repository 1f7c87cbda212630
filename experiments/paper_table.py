"""Print the paper's tables beside the results of this repository.

    python -m experiments.paper_table

Parameters and multiply-adds are counted on the built models. Accuracies of this repository come from the registry and
the logs in experiments/results. The paper: Xiao et al., "Early Convolutions Help Transformers See Better", arXiv
2106.14881. The CIFAR-10 references: Hassani et al., arXiv 2104.05704.
"""

from __future__ import annotations

import csv
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from convstem.registry import catalog
from experiments.transplant_gain_report import at_the_better

RESULTS = Path(__file__).parent / "results"

# size: patchify trunk (dim, MLP ratio, heads, blocks), then the paper's GFLOPs (multiply-adds) and million parameters
PATCHIFY = {
    "1gf": ((192, 3, 3, 12), 1.1, 4.8),
    "4gf": ((384, 3, 6, 12), 3.9, 18.5),
    "18gf": ((768, 4, 12, 12), 17.5, 86.6),
    "36gf": ((1024, 4, 16, 14), 35.9, 178.4),
}
CONV = {"1gf": (1.1, 4.6), "4gf": (4.0, 17.8), "18gf": (17.7, 81.6), "36gf": (35.0, 167.8)}

SCHEDULES = ("100 epochs", "200 epochs", "400 epochs", "from IN-21k")
ERRORS = {
    ("1gf", "patchify"): (33.2, 29.7, 27.7, None),
    ("1gf", "conv"): (28.6, 26.1, 24.7, None),
    ("4gf", "patchify"): (23.3, 20.8, 19.6, 20.6),
    ("4gf", "conv"): (20.9, 19.2, 18.6, 18.8),
    ("18gf", "patchify"): (19.9, 18.4, 17.9, 16.4),
    ("18gf", "conv"): (18.4, 17.5, 17.0, 15.1),
    ("36gf", "patchify"): (19.9, 18.8, 18.2, 15.1),
    ("36gf", "conv"): (18.3, 17.6, 16.8, 14.2),
}
"""ImageNet-1k top-1 error in per cent, 224 pixels, AdamW."""

OPTIMIZERS = {"patchify": (27.7, 33.0), "conv": (24.0, 24.7)}
"""4GF, 50 epochs: error with AdamW and with SGD."""

NORMS = {"patchify": 23.2, "conv, BatchNorm": 20.9, "conv, LayerNorm": 21.1}
"""4GF, 100 epochs: top-1 error; the paper's ablation has its own baseline."""

CIFAR = {
    "ViT-Lite-7/4 (patchify)": (91.38, 3.717, 0.239),
    "CVT-7/4 (patchify)": (92.43, 3.717, 0.236),
    "CCT-4/3x2": (91.45, 0.482, 0.046),
    "CCT-6/3x2": (93.56, 3.327, 0.241),
    "CCT-7/3x2": (93.83, 3.853, 0.275),
    "CCT-7/3x1 (4x the tokens)": (94.78, 3.760, 0.947),
}
"""Top-1 accuracy after 200 epochs, million parameters, GMACs."""


def count(name: str, **kwargs: object) -> tuple[int, float]:
    """Return the parameters and GMACs of a timm model, built without memory."""
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs).eval()
        image = torch.empty(1, *model.pretrained_cfg["input_size"])
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model(image)
    return sum(parameter.numel() for parameter in model.parameters()), flops.get_total_flops() / 2e9


def size_lines() -> list[str]:
    """Return the table of model sizes."""
    lines = [f"{'model':<14}{'GMACs: paper':>13}{'here':>8}{'params (M): paper':>19}{'here':>13}"]
    for size, (trunk, gflops, params) in PATCHIFY.items():
        kwargs = dict(zip(("embed_dim", "mlp_ratio", "num_heads", "depth"), trunk, strict=True))
        rows = {
            f"ViT_P-{size.upper()}": (gflops, params, count("vit_base_patch16_224", **kwargs)),
            f"ViT_C-{size.upper()}": (*CONV[size], count(f"vitc_{size}")),
        }
        for name, (theirs, theirs_params, (ours_params, ours)) in rows.items():
            lines.append(f"{name:<14}{theirs:>13}{ours:>8.2f}{theirs_params:>19}{ours_params:>13,}")
    return lines


def trained(folder: str) -> str:
    """Return the final accuracy in the logs in experiments/results after all cycles, or that there are no logs."""
    cycles = []
    for path in sorted((RESULTS / folder).glob("summary*.csv")):
        with open(path, encoding="utf-8") as file:
            cycles.append([row for row in csv.DictReader(file) if row["epoch"].isdigit()][-1])
    if not cycles:
        return "not trained here"
    return f"{float(cycles[-1]['eval_top1']):.2f} % after {sum(int(row['epoch']) + 1 for row in cycles)} epochs"


def error_lines() -> list[str]:
    """Return the table of ImageNet errors."""
    lines = [f"{'model':<14}" + "".join(f"{name:>13}" for name in SCHEDULES) + "   accuracy here"]
    for (size, stem), errors in ERRORS.items():
        name = f"ViT_{'P' if stem == 'patchify' else 'C'}-{size.upper()}"
        here = trained(f"vitc_{size}_imagenet") if stem == "conv" else "not ours"
        lines.append(f"{name:<14}" + "".join(f"{error or '-':>13}" for error in errors) + f"   {here}")
    return lines


def optimizer_lines() -> list[str]:
    """Return the comparison of optimizers: the paper's, then ours at CIFAR scale, if it has been run."""
    lines = [f"{'4GF, 50 epochs':<16}{'AdamW':>8}{'SGD':>8}{'gap':>8}"]
    lines += [f"{stem:<16}{adamw:>8}{sgd:>8}{sgd - adamw:>8.1f}" for stem, (adamw, sgd) in OPTIMIZERS.items()]
    return [*lines, "", "here, at CIFAR scale:", *run_here("cifar10_evidence*")]


def run_here(folders: str) -> list[str]:
    """Return the reports in matching folders of experiments/results, or that there are none."""
    paths = sorted(RESULTS.glob(f"{folders}/results.txt"))
    return [line for path in paths for line in (*path.read_text(encoding="utf-8").splitlines(), "")] or ["not run here"]


def cifar_lines() -> list[str]:
    """Return the CIFAR-10 table: published models, then ours."""
    lines = [f"{'model':<28}{'top-1 %':>9}{'params (M)':>12}{'GMACs':>8}"]
    lines += [f"{name:<28}{top1:>9}{params:>12}{gmacs:>8}" for name, (top1, params, gmacs) in CIFAR.items()]
    for name in ("vit_xs4_convstem", "vit_nano4_convstem"):
        params, gmacs = count(name)
        metrics = [w.metrics["acc@1"] for tag, w in catalog.weights().items() if tag.startswith(f"{name}.cifar10")]
        top1 = max(metrics, default="-")
        scripted = trained(f"{name}_cifar10")
        lines.append(f"{name:<28}{top1:>9}{params / 1e6:>12.3f}{gmacs:>8.3f}   with timm's train.py: {scripted}")
    return lines


def main() -> None:
    """Print everything."""
    norms = [f"{name:<16}{error:>8}" for name, error in NORMS.items()]
    sections = {
        "Sizes (paper: published; here: counted on the built model)": size_lines(),
        "ImageNet-1k top-1 error, % (paper)": error_lines(),
        "AdamW against SGD, top-1 error, % (paper)": optimizer_lines(),
        "Norm of the stem, 4GF, 100 epochs, top-1 error, % (paper; not trained here)": norms,
        "What a transplant is good for (nothing of it is in the paper)": run_here("transplant_gain*"),
        "The transplant of DINOv2, each model at the better of one rate and layer-wise decay": [
            *at_the_better(*sorted(RESULTS.glob("transplant_gain_dinov2*")))
        ],
        "Robustness (Singh et al. 2023: +4 points of AutoAttack accuracy at ViT-S)": run_here("robustness*"),
        "The embedded model: its teacher, itself, and the same recipe without teacher (CIFAR-10)": run_here("nano4"),
        "CIFAR-10 from scratch, 200 epochs (Compact Transformers), and ours": cifar_lines(),
    }
    print("\n\n".join("\n".join([title, "", *lines]) for title, lines in sections.items()))


if __name__ == "__main__":
    main()
