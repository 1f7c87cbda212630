"""The entry point, which turns errors into exit statuses, and the commands doctor, run and demo."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import convstem
from convstem.cli import AS_JSON, ERASE, FOLDER, hub, models, print_json, say, weights
from convstem.errors import printable
from convstem.files.paths import path_errors
from convstem.registry import tables


@click.command(short_help="Show what is registered in timm and torchvision, and how.")
@AS_JSON
def doctor(as_json: bool) -> None:
    """Show which names were registered with timm and torchvision, by which route, and why any were refused."""
    from convstem.hosts.describe import examine

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
    """Return one host's registration as text."""
    if record["error"]:
        return f"failed by {record['path']}: {record['error']}"
    refused = "".join(f"\n  refused {name}: {reason}" for name, reason in sorted(record["refused"].items()))
    return f"{len(record['names'])} names by {record['path']}{refused}"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Run a Python script with convstem's names registered.",
)
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(script: str, args: Sequence[str]) -> None:
    """Run a Python SCRIPT with ARGS and convstem's names registered, even if autoload is switched off.

    Processes that the script starts (data loader workers, torchrun) get the names too. Under torchrun:
    `torchrun --nproc-per-node 2 -m convstem run train.py ...`.
    """
    os.environ.update(TORCH_DEVICE_BACKEND_AUTOLOAD="1", CONVSTEM_AUTOLOAD="1")
    sys.argv = [script, *args]
    sys.path[0] = str(Path(script).resolve().parent)
    try:
        runpy.run_path(script, run_name="__main__")
    except Exception:  # the script's own error: show its whole traceback
        traceback.print_exc()
        sys.exit(1)


@click.command(short_help="Classify real images with the weights in the package.")
@click.option("--out", type=FOLDER, default=Path("demo_output"), show_default=True)
def demo(out: Path) -> None:
    """Classify the CIFAR-10 test images shipped with the package, in timm and in torchvision."""
    with path_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
    samples = tables.data_dir("registry") / "cifar10_samples"
    script = Path(__file__).with_name("demo_script.py")  # a script, to show that no import is needed
    sys.exit(subprocess.run([sys.executable, str(script), str(samples), str(out)], check=False).returncode)


INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT


class Group(click.Group):
    """Turn a ``ConvStemError`` into one line and exit status 1. Any other error is a bug and keeps its traceback.

    click handles usage errors (exit status 2) and stays silent when the reader of a pipe has gone.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        usual, warnings.formatwarning = warnings.formatwarning, _sentence
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            ctx.exit(INTERRUPTED)
        except convstem.ConvStemError as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error
        finally:
            warnings.formatwarning = usual


def _sentence(message: Warning | str, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    """Format a warning without its source line, which is in our own code."""
    return f"{ERASE if sys.stderr.isatty() else ''}Warning: {printable(message)}\n"


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
@click.version_option(convstem.__version__, prog_name="convstem")
def main(debug: bool) -> None:
    """Conv-stem Vision Transformers for timm and torchvision.

    \b
    Exit status:
      0    success
      1    an error, in one line; a check that failed; a bug, with its traceback
      2    wrong usage
      130  interrupted by Ctrl-C
    """


for command in (
    *(demo, doctor, run),
    *(hub.card, hub.publish, hub.pull, hub.push, hub.verify),
    *(models.list_command, models.show),
    *(weights.cache, weights.convert, weights.export, weights.fold, weights.transplant),
):
    main.add_command(command)
