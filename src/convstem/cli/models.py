"""The commands about names: list, show."""

from __future__ import annotations

import json
from typing import Any

import click

from convstem.cli.tables import table
from convstem.registry.describe import describe, list_models


@click.command("list")
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="Only models with weights, one line per tag.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(pattern: str, pretrained: bool, as_json: bool) -> None:
    """List architectures (or pretrained tags) whose name matches PATTERN."""
    names = list_models(pattern, pretrained=pretrained)
    if as_json:
        click.echo(json.dumps([describe(name) | {"name": name} for name in names], indent=2))
        return
    rows = [["name", "torchvision", "params (M)", "GMACs", "image", "weights"]]
    click.echo(table([*rows, *(list_row(name, describe(name)) for name in names)]))


def list_row(name: str, info: dict[str, Any]) -> list[str]:
    """Return one architecture as a table row; on another timm trunk the sizes are timm's."""
    if "num_params" not in info:
        return [name, "-", "-", "-", "-", f"those of timm's {info['trunk']}"]
    tags = [weights["name"].split(".", 1)[1] for weights in info["weights"]]
    weights = tags[0] + (f" and {len(tags) - 1} more" if len(tags) > 1 else "") if tags else "-"
    params, gmacs = f"{info['num_params'] / 1e6:.1f}", f"{info['macs'] / 1e9:.2f}"
    return [name, info["torchvision"] or "-", params, gmacs, str(info["img_size"]), weights]


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Show one architecture: stem, sizes, parameters, weights and licences."""
    info = describe(name)
    if as_json:
        click.echo(json.dumps(info, indent=2))
        return
    if "num_params" not in info:
        click.echo(f"{name}: timm's {info['trunk']} on a conv stem; its sizes and pretrained tags are timm's")
        return
    click.echo(f"{info['name']}   (torchvision: {info['torchvision'] or 'not available'})\n{info['source']}\n")
    click.echo(table(stem_rows(info)))
    click.echo(
        f"\ntrunk: {info['depth']} blocks, embed_dim {info['embed_dim']}, {info['num_heads']} heads, "
        f"MLP ratio {info['mlp_ratio']:g}, {info['pos_embed']} position embedding"
        f"\ninput: 3 x {info['img_size']} x {info['img_size']}, patch {info['patch_size']}, "
        f"{info['num_classes']} classes"
        f"\nparams: {info['num_params']:,}   multiply-adds: {info['macs'] / 1e9:.2f} G"
    )
    rows = [["weights", "licence", "dataset", "metrics", "location"]]
    for entry in info["weights"]:
        metrics = ", ".join(f"{key} {value:g} %" for key, value in entry["metrics"].items()) or "-"
        rows.append([entry["name"], entry["license"], entry["dataset"], metrics, entry["location"]])
    click.echo("\n" + (table(rows) if info["weights"] else "no pretrained weights"))
    for entry in info["elsewhere"]:
        click.echo("\n" + elsewhere_text(entry))


def elsewhere_text(entry: dict[str, Any]) -> str:
    """Return where another project's weights are, and what to do with the file."""
    metrics = ", ".join(f"{name} {value:g} %" for name, value in entry["metrics"].items())
    checksum = entry["sha256"] or "not known: nobody has recorded it yet, so compare the file with its source"
    return (
        f"trained weights elsewhere: {entry['published_as']}, {entry['address']}, on no Hub that convstem reads"
        f"\n  licence: {entry['license']} ({entry['license_source']})"
        f"\n  {entry['dataset']}: {metrics} ({entry['metrics_source']})"
        f"\n  sha256: {checksum}"
        f"\n  download the file there, for example with the project's own loader, then: {entry['command']}"
    )


def stem_rows(info: dict[str, Any]) -> list[list[str]]:
    """Return the stem as table rows, layer by layer, with the feature map's size in pixels."""
    rows = [["stem layer", "kernel", "stride", "channels", "feature map"]]
    size, names = info["img_size"], info["stem_layer"]
    layers = zip(info["stem_channels"], info["stem_kernel_sizes"], info["stem_strides"], strict=True)
    for channels, kernel, stride in layers:
        size = -(-size // stride)
        rows.append([names, f"{kernel}x{kernel}", str(stride), str(channels), f"{size}x{size}"])
    rows.append(["conv", "1x1", "1", str(info["embed_dim"]), f"{size}x{size}"])
    return rows
