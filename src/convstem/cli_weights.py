"""The commands about weights on this machine: convert, cache."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convstem.layouts import LAYOUTS


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option("--to", "target", type=click.Choice(sorted(LAYOUTS)), default="timm", show_default=True, help="Layout.")
@click.option("--use-ema", is_flag=True, help="Of a training checkpoint, take the averaged weights.")
def convert(source: Path, out: Path | None, target: str, use_ema: bool) -> None:
    """Write the checkpoint SOURCE (.pth, .pth.tar, .bin, .safetensors) as safetensors.

    OUT is by default SOURCE with the suffix .safetensors. No code in a pickle is run.
    """
    from convstem.conversion import convert_file

    out = out or source.with_name(source.name.removesuffix(".tar")).with_suffix(".safetensors")
    layout, count = convert_file(source, out, target, use_ema)
    click.echo(f"{out}: {count} tensors, from the layout {layout} to {target}")


@click.command()
@click.option("--clear", "clear_it", is_flag=True, help="Remove everything; it is made again when needed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def cache(clear_it: bool, as_json: bool) -> None:
    """Show what convstem keeps beside the Hub's cache: transplanted stems, and notes about checked files."""
    from convstem import local_cache

    entries = local_cache.entries()
    kinds = {kind: [entry for entry in entries if entry.kind == kind] for kind in local_cache.KINDS}
    freed = local_cache.clear() if clear_it else 0
    sizes = {kind: {"files": len(found), "bytes": sum(e.size for e in found)} for kind, found in kinds.items()}
    if as_json:
        click.echo(json.dumps({"folder": str(local_cache.root()), "kinds": sizes, "freed_bytes": freed}, indent=2))
        return
    click.echo(f"folder: {local_cache.root()}")
    for kind, size in sizes.items():
        click.echo(f"{kind}: {size['files']} files, {size['bytes'] / 1e6:.1f} MB")
    if clear_it:
        click.echo(f"removed: {freed / 1e6:.1f} MB")
