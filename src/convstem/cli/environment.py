"""The commands about this machine: doctor, run, demo."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from convstem.cli.options import AS_JSON, FOLDER, print_json, say
from convstem.files.paths import path_errors
from convstem.registry import tables


@click.command(short_help="Tell what is registered in both hosts, and by what.")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Tell what was registered with timm and torchvision, by which path, and what was refused and why."""
    from convstem.hosts.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
    else:
        versions = ", ".join(f"{name} {value or 'not installed'}" for name, value in report["packages"].items())
        say(f"python {report['python']}, {versions}")
        say(f"entry point: {report['entry_point'] or 'missing'}")
        say("switches: " + ", ".join(f"{k}={v or 'unset'}" for k, v in report["switches"].items()))
        for host in ("timm", "torchvision"):
            record = report["hosts"].get(host)
            say(f"{host}: " + (host_line(record) if record else "nothing registered"))
        for warning in report["warnings"]:
            say(f"warning: {warning}")
        say("all names resolve without an import" if report["ok"] else f"advice: {report['advice']}")
    sys.exit(0 if report["ok"] else 1)


def host_line(record: dict[str, Any]) -> str:
    """Return one host's registration as a line."""
    if record["error"]:
        return f"failed by {record['path']}: {record['error']}"
    refused = "".join(f"\n  refused {name}: {reason}" for name, reason in sorted(record["refused"].items()))
    return f"{len(record['names'])} names by {record['path']}{refused}"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a Python script with our names registered.",
)
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


@click.command(short_help="Classify real images with the weights in the package.")
@click.option("--out", type=FOLDER, default=Path("demo_output"), show_default=True)
def demo(out: Path) -> None:
    """Classify the CIFAR-10 test images shipped with the package, in timm and in torchvision."""
    with path_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
    samples = tables.data_dir("registry") / "cifar10_samples"
    script = Path(__file__).with_name("demo_script.py")  # run as a script: it shows that no import is needed
    sys.exit(subprocess.run([sys.executable, str(script), str(samples), str(out)], check=False).returncode)
