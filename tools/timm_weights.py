"""Write registry/timm_weights.json: timm's pretrained tags for the trunks of our architectures.

    python -m tools.timm_weights [--check] [--results CSV --commit SHA]

Each becomes one of our tags; loading it transplants the patch embedding. Tags of a trunk's 384-pixel twin end in
``_384``. It names only repositories in timm's registry. ``--check`` changes nothing and fails if the file is stale.

``--results`` reads the accuracy of the sources from a copy of timm's ``results/results-imagenet.csv`` at a commit of
https://github.com/huggingface/pytorch-image-models (no package contains it); without it the present figures stay.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
from torch import nn

from convstem.hosts.describe import dataset_of
from convstem.registry import catalog
from convstem.registry.tables import rows as registry_rows
from tools.generated import write_or_check
from tools.timm_trunks import build

SOURCE_FIELDS = ("source_metrics", "source_metrics_from")

TARGET = Path(__file__).parents[1] / "registry" / "timm_weights.json"


def rows() -> dict[str, dict[str, Any]]:
    """Return the rows by ``architecture.tag``, in timm's order: the first of an architecture is its default."""
    found = {}
    for spec in catalog.models().values():
        for size in ("224", "384") if spec.trunk else ():
            source = f"{spec.trunk.rpartition('_')[0]}_{size}"
            for name, cfg in timm.models.get_arch_pretrained_cfgs(source).items():
                found[name] = (spec.name, size, cfg)
    named = {}
    for name, (architecture, size, cfg) in found.items():
        suffix = "" if size == "224" else f"_{size}"
        named[f"{architecture}.{cfg.tag}{suffix}"] = row(name, cfg)
    architectures = list(catalog.models())
    return dict(sorted(named.items(), key=lambda item: architectures.index(item[0].split(".")[0])))


def row(name: str, cfg: timm.models.PretrainedCfg) -> dict[str, Any]:
    """Return one row; ``name`` is timm's architecture.tag."""
    assert cfg.hf_hub_id, f"{name} is not on the Hub"
    assert not cfg.hf_hub_filename, f"{name} is not an ordinary timm repository"
    return {
        "hf_hub_id": cfg.hf_hub_id,
        "transform": "transplant",
        "license": cfg.license or "unknown",
        "dataset": dataset_of(cfg.tag),
        "num_classes": cfg.num_classes,
        "input_size": cfg.input_size,
        "mean": cfg.mean,
        "std": cfg.std,
        "interpolation": cfg.interpolation,
        "crop_pct": cfg.crop_pct,
        "file_bytes": file_bytes(name.partition(".")[0], cfg.num_classes),
        "description": f"Transplanted from timm's {name}: function preserved, not trained further.",
    }


@cache
def file_bytes(architecture: str, num_classes: int) -> int:
    """Return the size in bytes of timm's weights file of an architecture."""
    return safetensors_bytes(build(architecture, num_classes=num_classes))


def safetensors_bytes(model: nn.Module) -> int:
    """Return the size of a float32 model's safetensors file, as timm saves it, from its shapes alone.

    Source: https://huggingface.co/docs/safetensors: eight bytes, a JSON header padded to eight bytes, the tensors.
    """
    header, end = {}, 0
    for name, tensor in sorted(model.state_dict().items()):
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end


def present_figures() -> dict[str, dict[str, Any]]:
    """Return the accuracy of the sources in the present file, by ``architecture.tag``."""
    return {
        name: {field: row[field] for field in SOURCE_FIELDS if field in row}
        for name, row in registry_rows("timm_weights").items()
    }


def published_figures(found: Mapping[str, Mapping[str, Any]], results: Path, commit: str) -> dict[str, dict[str, Any]]:
    """Return the accuracy that timm publishes for the sources of rows; the preprocessing must be that of the rows.

    Args:
        found: the rows by ``architecture.tag``.
        results: ``results-imagenet.csv``.
        commit: of timm's repository.
    """
    with results.open(newline="", encoding="utf-8") as file:
        published = {line["model"]: line for line in csv.DictReader(file)}
    figures = {}
    for name, row in found.items():
        line = published.get(row["hf_hub_id"].removeprefix("timm/"))
        if line is None:
            continue
        measured = (int(line["img_size"]), float(line["crop_pct"]), line["interpolation"])
        assert measured == (row["input_size"][1], row["crop_pct"], row["interpolation"]), f"{name}: {measured}"
        figures[name] = {
            "source_metrics": {"acc@1": float(line["top1"]), "acc@5": float(line["top5"])},
            "source_metrics_from": f"timm, results/results-imagenet.csv at commit {commit[:8]}",
        }
    return figures


def main() -> int:
    """Write the file, or compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is stale")
    parser.add_argument("--results", type=Path, help="a copy of timm's results-imagenet.csv")
    parser.add_argument("--commit", help="its commit in timm's repository")
    args = parser.parse_args()
    found = rows()
    figures = published_figures(found, args.results, args.commit) if args.results else present_figures()
    full = {name: {**fields, **figures.get(name, {})} for name, fields in found.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in full.items())
    return write_or_check(TARGET, f"{{\n{lines}\n}}\n", args.check, "timm_weights")


if __name__ == "__main__":
    sys.exit(main())
