"""What exists, as plain data, and what was registered: behind ``convstem list``, ``show`` and ``doctor``.

timm is imported only for the pretrained tags of its trunks.
"""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from convstem.errors import UnknownModelError
from convstem.registry import catalog
from convstem.registry.licenses import admitted
from convstem.registry.records import Architecture, ModelSpec, TrunkSpec, WeightsSpec, macs, num_params
from convstem.registry.stem_spec import COARSEST, StemSpec, choice
from convstem.registry.tables import what_is_kept


def list_models(filter: str = "", pretrained: bool = False, license: str | None = None) -> list[str]:
    """Return timm names: convstem's own families first, then timm trunks under short names, then the others.

    Args:
        filter: shell-style pattern of a timm or torchvision name, or a word in it, such as ``dinov3``; ``*`` is
            everything. Default: all names but those of the form ``<timm name>_convstem``.
        pretrained: only models with weights, one entry per tag; the pattern may then match the tag too.
        license: only pretrained tags under this licence, such as ``apache-2.0``; ``permissive`` stands for all
            licences that let everybody use, change and sell the weights.

    Names that end in ``_pyramid`` are listed only if the filter contains this word.

    Raises:
        ArgumentError: no weights have this licence; the message lists the licences there are.
        UnknownModelError: no name contains this word; the message lists the nearest names. A pattern with ``*``, ``?``
            or ``[`` that matches nothing gives an empty list.
    """
    names = listed(filter, pretrained, license)
    if not names and not set(filter) & set("*?["):
        raise UnknownModelError(no_match(filter, pretrained, license))
    return names


def no_match(pattern: str, pretrained: bool, license: str | None) -> str:
    """Return the message for a pattern that matches nothing: what to leave out, or the nearest names."""
    if license is not None and listed(pattern, pretrained=True):
        return f"no pretrained tag matching {pattern!r} has the licence {license}; leave out --license to see all"
    if pretrained and listed(pattern):
        return f"no name matching {pattern!r} has pretrained weights; leave out --pretrained to see all"
    near = catalog.nearest(pattern.strip("*?"))
    hint = f"did you mean {', '.join(sorted(near))}?" if near else "`convstem list --all` prints all names"
    return f"no {'pretrained tag' if pretrained else 'name'} matches {pattern!r}; {hint}"


def listed(filter: str = "", pretrained: bool = False, license: str | None = None) -> list[str]:
    """Return the names of ``list_models``, or an empty list if nothing matches."""
    if not pretrained and license is None:
        return catalog.matching(filter)
    if license is not None:
        choice("license", license, ["permissive", *_licenses()])
    pattern = catalog.as_pattern(filter)
    names = catalog.matching("*_pyramid" if "pyramid" in filter else "*" if filter else "")
    tags = {f"{name}.{entry.tag}": entry for name in names for entry in weights_of(catalog.find(name).name)}
    return [
        name
        for name, entry in tags.items()
        if any(fnmatch.fnmatch(name, p) for p in (pattern, f"{pattern}.*"))
        and (license is None or admitted(entry.license, license))
    ]


def _licenses() -> set[str]:
    """Return the licences of all pretrained tags."""
    return {entry.license for name in catalog.architectures() for entry in weights_of(name)}


def names_on_conv_stem(name: str) -> list[str]:
    """Return our names for a patchify model of timm, with its tag if they have it; none for any other name."""
    base, _, tag = name.partition(".")
    names = catalog.conv_stem_names(base)
    return [f"{ours}.{tag}" for ours in names for entry in weights_of(ours) if entry.tag == tag] or names


def describe(name: str) -> dict[str, Any]:
    """Return everything known about an architecture, as plain JSON data.

    Args:
        name: timm or torchvision name. With a tag, head, image size and counts are those of the model with these
            weights; the counts are None if the trunk was not measured at that size.

    Raises:
        UnknownModelError: unknown name or tag; the message lists the nearest names, or the tags.
    """
    spec = catalog.find(name)
    entries = [find_weights(name)] if "." in name else weights_of(spec.name)
    published = [entry for entry in catalog.elsewhere().values() if entry.architecture == spec.name]
    return {
        **_describe(spec, entries),
        "weights": [_describe_weights(entry) for entry in entries],
        "elsewhere": [{**asdict(entry), "command": entry.command} for entry in published],
    }


def summarise(name: str) -> dict[str, Any]:
    """Return the result of ``describe`` without importing timm: ``weights`` is None if the tags are timm's.

    Raises:
        UnknownModelError: unknown name; the message lists the nearest ones.
    """
    spec = catalog.find(name)
    entries = catalog.weights_of(spec.name) if isinstance(spec, ModelSpec) else None
    weights = None if entries is None else [_describe_weights(entry) for entry in entries]
    return {**_describe(spec, entries or []), "weights": weights}


def _describe(spec: Architecture, entries: Sequence[WeightsSpec]) -> dict[str, Any]:
    """Return the facts of the architecture, built for its first weights."""
    built = catalog.sized(spec, entries[0].num_classes, entries[0].img_size) if entries else spec
    size = entries[0].img_size if entries else spec.img_size
    shared = ("name", "torchvision", "trunk", "embed_dim", "depth", "num_heads", "patch_size")
    return {
        **{field: getattr(spec, field) for field in shared},
        "mlp_ratio": getattr(spec, "mlp_ratio", None),  # of our own families only
        "pos_embed": getattr(spec, "pos_embed", None),
        "img_size": size if isinstance(size, int) else list(size),
        "num_classes": entries[0].num_classes if entries else spec.num_classes,
        **spec.stem.model_args,
        "pyramid": [{"stride": s, "channels": c} for s, c in spec.stem.levels(spec.embed_dim, COARSEST)],
        "num_params": built and num_params(built),
        "macs": built and macs(built),
        "source": spec.source,
    }


def _describe_weights(entry: WeightsSpec) -> dict[str, Any]:
    shared = ("name", "license", "dataset", "transform", "num_classes", "description", "interpolation", "crop_pct")
    return {
        **{field: getattr(entry, field) for field in shared},
        "metrics": dict(entry.metrics),
        "source_metrics": dict(entry.source_metrics),
        "source_metrics_from": entry.source_metrics_from,
        "location": "embedded" if entry.file else entry.hf_hub_id,
        "input_size": list(entry.input_size),
        "mean": list(entry.mean),
        "std": list(entry.std),
    }


STEM_COLUMNS = ("stem layer", "kernel", "stride", "channels", "feature map")


def stem_rows(stem: StemSpec, img_size: int | Sequence[int], embed_dim: int) -> list[list[str]]:
    """Return a stem as table rows below ``STEM_COLUMNS``, the last convolution included.

    Args:
        stem: the stem.
        img_size: in pixels, one number or height and width.
        embed_dim: width of the trunk.
    """
    titled = [(stem.layer_title, layer) for layer in stem.layers(img_size)]
    return [
        [title, f"{made.kernel_size}x{made.kernel_size}", *map(str, (made.stride, made.channels)), made.map_size]
        for title, made in [*titled, ("conv", stem.last_layer(embed_dim, img_size))]
    ]


# End of a tag -> the data set it was trained on last; the first match counts.
_DATASETS = (("in1k", "ImageNet-1k"), ("in21k", "ImageNet-21k"), ("dino", "ImageNet-1k"), ("mae", "ImageNet-1k"))


def weights_of(architecture: str) -> list[WeightsSpec]:
    """Return the weights entries of any of our architectures, the default first."""
    if architecture in catalog.models():
        return catalog.weights_of(architecture)
    from timm.models import get_arch_pretrained_cfgs

    cfgs = get_arch_pretrained_cfgs(architecture).items()
    return [trunk_entry(name, cfg) for name, cfg in cfgs if cfg.hf_hub_id and cfg.tag]


def find_weights(name: str) -> WeightsSpec:
    """Return the weights entry of a name with a tag, or the default entry of a name without one.

    Raises:
        UnknownModelError: no such name or tag; the message lists the nearest names or the tags.
    """
    architecture, tag = catalog.find(name).name, name.partition(".")[2]
    entries = weights_of(architecture)
    found = [entry for entry in entries if tag in ("", entry.tag)]
    if found:
        return found[0]
    if not entries:
        raise UnknownModelError(
            f"{architecture} has no pretrained weights here: timm.create_model({architecture!r}) builds it untrained, "
            "and `convstem convert FILE --out FOLDER` takes its authors' checkpoint"
        )
    has = ", ".join(sorted(entry.tag for entry in entries))
    raise UnknownModelError(f"{architecture} has no pretrained tag {tag!r}; it has {has}")


def trunk_entry(name: str, cfg: Any) -> WeightsSpec:
    """Return the weights entry of a timm pretrained cfg under our name with tag."""
    shared = ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "hf_hub_id")
    source = cfg.hf_hub_id.removeprefix("timm/")
    spec = catalog.find(name)
    patch = spec.resized_from if isinstance(spec, TrunkSpec) else None
    return WeightsSpec(
        name=name,
        license=cfg.license or "unknown",
        dataset=dataset_of(source.partition(".")[2]),
        transform="transplant",
        description=f"Transplanted from timm's {source}: {what_is_kept(patch)}, not trained further.",
        **{field: getattr(cfg, field) for field in shared},
    )


def dataset_of(tag: str) -> str:
    """Return the data set that a timm tag's weights were trained on last, or the tag if it does not say."""
    return next((dataset for end, dataset in _DATASETS if tag.endswith(end)), tag)


_SWITCHES = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "CONVSTEM_AUTOLOAD")

_PACKAGES = ("convstem", "torch", "torchvision", "timm", "huggingface_hub", "safetensors")

# Does not import convstem, so it shows only what torch's autoload did.
_PROBE = """
import dataclasses, json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, timm.models, torchvision.models
register = sys.modules.get("convstem.hosts.registration")
records = {host: dataclasses.asdict(r) for host, r in register.REGISTRATIONS.items()} if register else {}
said = [str(w.message) for w in caught if "convstem" in str(w.message)]
print(json.dumps({"hosts": records, "warnings": said}))
"""


def examine() -> dict[str, Any]:
    """Return versions, switches, the entry point, and what was registered with each host in a fresh process.

    ``ok`` is true if both hosts got all names that were not refused, without an import of convstem.
    """
    report: dict[str, Any] = {
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "switches": {name: os.environ.get(name) for name in _SWITCHES},
        "entry_point": next((e.value for e in entry_points(group="torch.backends") if e.name == "convstem"), None),
    }
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe.returncode:
        last = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        report |= {"hosts": {}, "warnings": [f"importing torch, timm and torchvision failed: {last}"]}
    else:
        report |= json.loads(probe.stdout.strip().splitlines()[-1])
    report["ok"] = len(report["hosts"]) == 2 and not any(host["error"] for host in report["hosts"].values())
    report["advice"] = "" if report["ok"] else _advice(report)
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _advice(report: dict[str, Any]) -> str:
    if missing := [name for name, found in report["packages"].items() if found is None and name != "convstem"]:
        return f"{', '.join(missing)} not installed: pip install {' '.join(missing)}"
    off = [f"{name}=0" for name in _SWITCHES if report["switches"][name] == "0"]
    if off:
        return (
            f"autoload is switched off by {' and '.join(off)}: unset it, `import convstem` in your script, pass "
            "`--device-modules convstem` to timm's train.py, or use `convstem run SCRIPT`"
        )
    if report["entry_point"] is None:
        return "the torch.backends entry point is missing: install convstem with pip (a bare PYTHONPATH has none)"
    return "see the warnings above; reinstall convstem, and set CONVSTEM_AUTOLOAD=0 until then"
