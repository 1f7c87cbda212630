"""The commands about names: list, show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from convstem.cli import AS_JSON, print_json, say_lines, table
from convstem.errors import UnknownModelError
from convstem.hosts.describe import (
    STEM_COLUMNS,
    describe,
    listed,
    names_on_conv_stem,
    no_match,
    stem_rows,
    summarise,
)
from convstem.hub.source import source_of
from convstem.registry import catalog


@click.command("list", short_help="List architectures or pretrained tags.")
@click.argument("pattern", default="")
@click.option("--all", "everything", is_flag=True, help="Also every other timm ViT, as <timm name>_convstem.")
@click.option("--pretrained", is_flag=True, help="Only models with weights, one line per tag.")
@click.option("--license", metavar="ID", help="Only tags with this licence, such as apache-2.0 or permissive.")
@AS_JSON
def list_command(pattern: str, everything: bool, pretrained: bool, license: str | None, as_json: bool) -> None:
    """List architectures (or pretrained tags) whose name matches PATTERN.

    PATTERN is a quoted shell pattern ('vit_b16_*') or part of a name (dinov3). Without it, list convstem's own
    families, then timm trunks that have their own names.
    """
    pretrained = pretrained or license is not None
    names = listed(pattern or "*" * everything, pretrained, license)
    if not names:
        raise UnknownModelError(no_match(pattern, pretrained, license))
    infos = [(describe if pretrained else summarise)(name) | {"name": name} for name in names]
    if as_json:
        print_json(infos)
        return
    say_lines(table([(TAG_COLUMNS if pretrained else COLUMNS), *map(tag_row if pretrained else list_row, infos)]))
    if not pattern and not everything:
        more = len(catalog.architectures()) - len(catalog.matching())
        say_lines(f"\n{more} more as <timm name>_convstem: convstem list --all, or a pattern")


COLUMNS = ["name", "torchvision", "params (M)", "GMACs", "image", "weights"]


TAG_COLUMNS = ["name", "params (M)", "GMACs", "image", "classes", "licence", "dataset"]


def list_row(info: dict[str, Any]) -> list[str]:
    """Return one architecture as a table row."""
    return [info["name"], info["torchvision"] or "-", *sizes(info), weights_cell(info)]


def tag_row(info: dict[str, Any]) -> list[str]:
    """Return one pretrained tag as a table row."""
    (weights,) = info["weights"]
    return [info["name"], *sizes(info), str(info["num_classes"]), weights["license"], weights["dataset"]]


def sizes(info: dict[str, Any]) -> list[str]:
    """Return the cells for parameters (millions), multiply-adds (billions) and image size."""
    if info["num_params"] is None:
        return ["-", "-", pixels(info["img_size"])]
    return [f"{info['num_params'] / 1e6:.1f}", f"{info['macs'] / 1e9:.2f}", pixels(info["img_size"])]


def pixels(size: int | Sequence[int]) -> str:
    """Return an image size as text: one number for a square, else height x width."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def weights_cell(info: dict[str, Any]) -> str:
    """Return a short summary of an architecture's tags."""
    if info["weights"] is None:
        return f"from timm's {info['trunk']}"
    tags = [weights["name"].split(".", 1)[1] for weights in info["weights"]]
    return tags[0] + (f" and {len(tags) - 1} more" if len(tags) > 1 else "") if tags else "-"


@click.command(short_help="Show one architecture and its weights.")
@click.argument("name")
@AS_JSON
def show(name: str, as_json: bool) -> None:
    """Show one architecture: stem, sizes, parameters, weights and licences.

    NAME is a timm or torchvision name, with or without a pretrained tag. A patchify model of timm is shown on a
    conv stem.
    """
    name = source_of("show", name).name
    ours = names_on_conv_stem(name)
    info = describe(ours[0] if ours else name)
    if as_json:
        print_json(info)
        return
    if ours:
        say_lines(f"{catalog.on_conv_stem(name, ours)}\n")
    say_lines(f"{info['name']}   (torchvision: {info['torchvision'] or 'not available'})\n{info['source']}\n")
    stem = catalog.find(info["name"]).stem
    say_lines(table([STEM_COLUMNS, *stem_rows(stem, info["img_size"], info["embed_dim"])]))
    say_lines("\n" + "\n".join(trunk_lines(info)))
    say_lines("\n" + "\n".join(weights_lines(info["weights"])))
    for entry in info["elsewhere"]:
        say_lines("\n" + elsewhere_text(entry))


def elsewhere_text(entry: dict[str, Any]) -> str:
    """Return where another project publishes weights, and how to use the file."""
    metrics = ", ".join(f"{name} {value:g} %" for name, value in entry["metrics"].items())
    checksum = entry["sha256"] or "not known yet, so compare the file with its source"
    return (
        f"trained weights elsewhere: {entry['published_as']}, {entry['address']}, not on a Hub that convstem reads"
        f"\n  licence: {entry['license']} ({entry['license_source']})"
        f"\n  {entry['dataset']}: {metrics} ({entry['metrics_source']})"
        f"\n  sha256: {checksum}"
        f"\n  download the file there, for example with the project's own loader, then: {entry['command']}"
    )


def height_width(size: int | Sequence[int]) -> tuple[int, int]:
    """Return an image size as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def trunk_lines(info: dict[str, Any]) -> list[str]:
    """Return lines about the trunk, its input and its size."""
    heads = f"{info['num_heads']} heads" if info["num_heads"] else "no attention"
    ours = f", MLP ratio {info['mlp_ratio']:g}, {info['pos_embed']} position embedding" if info["mlp_ratio"] else ""
    height, width = height_width(info["img_size"])
    counts = (
        "params and multiply-adds: not counted at this image size"
        if info["num_params"] is None
        else f"params: {info['num_params']:,}   multiply-adds: {info['macs'] / 1e9:.2f} G"
    )
    return [
        f"trunk: {info['depth']} blocks, embed_dim {info['embed_dim']}, {heads}{ours}",
        f"input: 3 x {height} x {width}, patch {info['patch_size']}, {info['num_classes']} classes",
        counts,
    ]


def weights_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the weights as a table. For a single entry, add its description and preprocessing."""
    if not entries:
        return ["no pretrained weights"]
    rows = [["weights", "image", "classes", "licence", "dataset", "metrics", "location"]]
    for entry in entries:
        _, height, width = entry["input_size"]
        image = pixels(height if height == width else (height, width))
        facts = [str(entry["num_classes"]), entry["license"], entry["dataset"], metrics(entry), entry["location"]]
        rows.append([entry["name"], image, *facts])
    return [table(rows), *(preprocessing(entries[0]) if len(entries) == 1 else [])]


def metrics(entry: dict[str, Any]) -> str:
    """Return a weights entry's metrics: ours if measured, else its source's."""
    figures = ", ".join(f"{k} {v:g} %" for k, v in (entry["metrics"] or entry["source_metrics"]).items())
    return f"{figures} (source)" if figures and not entry["metrics"] else figures or "-"


def preprocessing(entry: dict[str, Any]) -> list[str]:
    """Return a weights entry's description and preprocessing."""
    mean, std = (", ".join(f"{value:g}" for value in entry[field]) for field in ("mean", "std"))
    resized = f"{entry['interpolation']}, crop {entry['crop_pct']:g}, mean {mean}, std {std}"
    cited = f"metrics of the source: {entry['source_metrics_from']}" if entry["source_metrics"] else None
    return ["", *filter(None, [entry["description"], cited]), f"preprocessing: {resized}"]
