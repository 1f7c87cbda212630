"""Write registry/timm_weights.json: the pretrained tags that timm has for the trunks of our architectures.

    python -m tools.timm_weights [--check]

Each becomes a tag of ours whose stem is transplanted while loading. Tags of a trunk's 384-pixel twin end in ``_384``.
Only repositories that timm's own registry lists are named. ``--check`` changes nothing and fails if the file is stale.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import timm

from convstem.hosts.timm_tags import dataset_of
from convstem.registry import catalog
from tools.generated import write_or_check

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
        "description": f"Transplanted from timm's {name}: function preserved, not trained further.",
    }


def main() -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the file is stale")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in rows().items())
    text = f"{{\n{lines}\n}}\n"
    return write_or_check(TARGET, text, parser.parse_args().check, "timm_weights")


if __name__ == "__main__":
    sys.exit(main())
