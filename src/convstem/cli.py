"""The command line: a thin edge that parses, calls a library function and prints."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import convstem
from convstem import cli_weights, registry
from convstem.checkpoints import CheckpointError
from convstem.cli_hub import COMMANDS as HUB_COMMANDS
from convstem.listing import describe, list_models
from convstem.specs import StemSpec


class Group(click.Group):
    """A group whose domain errors become one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (CheckpointError, KeyError, OSError, TypeError, ValueError) as error:
            message = error.args[0] if isinstance(error, KeyError) and error.args else error
            raise click.ClickException(str(message)) from error


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(convstem.__version__, prog_name="convstem")
def main() -> None:
    """Conv-stem Vision Transformers for timm and torchvision."""


for command in HUB_COMMANDS:
    main.add_command(command)


@main.command("list")
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


@main.command()
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


def stem_rows(info: dict[str, Any]) -> list[list[str]]:
    """Return the stem as table rows, layer by layer, with the feature map's size in pixels."""
    rows = [["stem layer", "kernel", "stride", "channels", "feature map"]]
    size, names = info["img_size"], f"conv + {info['stem_norm']} + {info['stem_act']}"
    layers = zip(info["stem_channels"], info["stem_kernel_sizes"], info["stem_strides"], strict=True)
    for channels, kernel, stride in layers:
        size = -(-size // stride)
        rows.append([names, f"{kernel}x{kernel}", str(stride), str(channels), f"{size}x{size}"])
    rows.append(["conv", "1x1", "1", str(info["embed_dim"]), f"{size}x{size}"])
    return rows


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Tell what was registered with timm and torchvision, by which path, and what was refused and why."""
    from convstem.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        versions = ", ".join(f"{name} {value or 'not installed'}" for name, value in report["packages"].items())
        click.echo(f"python {report['python']}, {versions}")
        click.echo(f"entry point: {report['entry_point'] or 'missing'}")
        click.echo("switches: " + ", ".join(f"{k}={v or 'unset'}" for k, v in report["switches"].items()))
        for host in ("timm", "torchvision"):
            record = report["hosts"].get(host)
            click.echo(f"{host}: " + (host_line(record) if record else "nothing registered"))
        for warning in report["warnings"]:
            click.echo(f"warning: {warning}")
        click.echo("all names resolve without an import" if report["ok"] else f"advice: {report['advice']}")
    sys.exit(0 if report["ok"] else 1)


def host_line(record: dict[str, Any]) -> str:
    """Return one host's registration as a line."""
    if record["error"]:
        return f"failed by {record['path']}: {record['error']}"
    refused = "".join(f"\n  refused {name}: {reason}" for name, reason in sorted(record["refused"].items()))
    return f"{len(record['names'])} names by {record['path']}{refused}"


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str, args: Sequence[str]) -> None:
    """Run a Python SCRIPT with ARGS, with our names registered even where autoload is switched off.

    Processes that the script starts (data loader workers, torchrun) get the names too. Under torchrun:
    `torchrun --nproc-per-node 2 -m convstem run train.py ...`.
    """
    os.environ.update(TORCH_DEVICE_BACKEND_AUTOLOAD="1", CONVSTEM_AUTOLOAD="1")
    sys.argv = [script, *args]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:  # the script's own error, not ours to shorten
        traceback.print_exc()
        sys.exit(1)


@main.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("demo_output"), show_default=True)
def demo(out: Path) -> None:
    """Classify the CIFAR-10 test images shipped with the package, in timm and in torchvision."""
    samples = registry.data_dir("registry") / "cifar10_samples"
    script = Path(__file__).with_name("first_run.py")  # run as a script: it shows that no import is needed
    sys.exit(subprocess.run([sys.executable, str(script), str(samples), str(out)], check=False).returncode)


@main.command()
@click.argument("source")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option("--to", "name", help="Take the stem of this architecture.")
@click.option("--stem-channels", help="Channels of the stem's layers, comma-separated; strides are 2.")
@click.option("--calibration", type=click.Path(exists=True, file_okay=False), help="Folder of typical images.")
@click.option("--margin", default=0.25, show_default=True, help="Reach beyond the pixel range, normalised units.")
@click.option("--tolerance", default=1e-4, show_default=True, help="Largest accepted relative error.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def transplant(
    source: str,
    out: Path,
    name: str | None,
    stem_channels: str | None,
    calibration: str | None,
    margin: float,
    tolerance: float,
    as_json: bool,
) -> None:
    """Convert the pretrained timm model SOURCE into a conv-stem ViT with the same function.

    SOURCE is a timm name such as vit_base_patch16_224.augreg2_in21k_ft_in1k, hf-hub:ORG/NAME or local-dir:FOLDER.
    """
    from convstem.export import transplant_to_folder

    if name and stem_channels:
        raise click.UsageError("give --to or --stem-channels, not both")
    stem = StemSpec(tuple(int(c) for c in stem_channels.split(","))) if stem_channels else name
    result = transplant_to_folder(source, out, stem, calibration, margin, tolerance)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
        return
    click.echo(f"{result.source} -> {result.architecture} (licence of the source: {result.license})")
    click.echo(f"{result.report.summary()}\nmeasured relative error of the features: {result.measured_error:.1e}")
    click.echo(f"written: {result.folder}/config.json, model.safetensors, README.md")


for command in (cli_weights.cache, cli_weights.convert):
    main.add_command(command)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first row underlined."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
