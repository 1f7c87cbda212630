"""The commands about weights on this machine: cache, convert, transplant."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convstem.layouts.recognise import LAYOUTS
from convstem.registry.stem_spec import StemSpec


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(sorted(LAYOUTS)), default="timm", show_default=True, help="Layout.")
@click.option("--use-ema", is_flag=True, help="Of a training checkpoint, take the averaged weights.")
def convert(source: Path, out: Path | None, target: str, use_ema: bool) -> None:
    """Write the checkpoint SOURCE (.pth, .pth.tar, .bin, .safetensors) as safetensors.

    OUT is by default SOURCE with the suffix .safetensors. No code in a pickle is run.
    """
    from convstem.files.checkpoint import convert_file

    out = out or source.with_name(source.name.removesuffix(".tar")).with_suffix(".safetensors")
    layout, count = convert_file(source, out, target, use_ema)
    click.echo(f"{out}: {count} tensors, from the layout {layout} to {target}")


@click.command()
@click.option("--clear", "clear_it", is_flag=True, help="Remove everything; it is made again when needed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache(clear_it: bool, as_json: bool) -> None:
    """Show what convstem keeps beside the Hub's cache: transplanted stems, and notes about checked files."""
    from convstem.files import cache

    entries = cache.entries()
    kinds = {kind: [entry for entry in entries if entry.kind == kind] for kind in cache.KINDS}
    freed = cache.clear() if clear_it else 0
    sizes = {kind: {"files": len(found), "bytes": sum(e.size for e in found)} for kind, found in kinds.items()}
    if as_json:
        click.echo(json.dumps({"folder": str(cache.root()), "kinds": sizes, "freed_bytes": freed}, indent=2))
        return
    click.echo(f"folder: {cache.root()}")
    for kind, size in sizes.items():
        click.echo(f"{kind}: {size['files']} files, {size['bytes'] / 1e6:.1f} MB")
    if clear_it:
        click.echo(f"removed: {freed / 1e6:.1f} MB")


def parse_channels(context: click.Context, option: click.Parameter, text: str | None) -> StemSpec | None:
    """Return the stem of ``24,96,384,1536``."""
    try:
        return StemSpec(tuple(int(channels) for channels in text.split(","))) if text else None
    except ValueError as error:
        raise click.BadParameter(f"expected channels such as 24,96,384,1536; got {text!r}") from error


@click.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--to", "name", help="Take the stem of this architecture.")
@click.option(
    "--stem-channels",
    "stem",
    callback=parse_channels,
    metavar="C1,C2,...",
    help="Channels of the stem's layers, comma-separated; strides are 2.",
)
@click.option("--calibration", type=click.Path(exists=True, file_okay=False), help="Folder of typical images.")
@click.option("--margin", default=0.25, show_default=True, help="Reach beyond the pixel range, normalised units.")
@click.option("--tolerance", default=1e-4, show_default=True, help="Largest accepted relative error.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def transplant(
    source: str,
    out: Path,
    name: str | None,
    stem: StemSpec | None,
    calibration: str | None,
    margin: float,
    tolerance: float,
    as_json: bool,
) -> None:
    """Convert the pretrained timm model SOURCE into a conv-stem ViT with the same function.

    SOURCE is a timm name such as vit_base_patch16_224.augreg2_in21k_ft_in1k, hf-hub:ORG/NAME or local-dir:FOLDER.
    """
    from convstem.publishing.transplant_folder import transplant_to_folder

    if name and stem:
        raise click.UsageError("give --to or --stem-channels, not both")
    result = transplant_to_folder(source, out, stem or name, calibration, margin, tolerance)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
        return
    click.echo(f"{result.source} -> {result.architecture} (licence of the source: {result.license})")
    click.echo(f"{result.report.summary()}\nmeasured relative error of the features: {result.measured_error:.1e}")
    click.echo(f"written: {result.folder}/config.json, model.safetensors, README.md")
