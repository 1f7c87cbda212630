"""The command line: a thin edge that parses, calls a library function and prints."""

from __future__ import annotations

import warnings
from typing import Any

import click

import convstem
from convstem.cli import environment, hub, models, weights
from convstem.errors import printable

INTERRUPTED = 130  # what a shell reports for Ctrl-C: 128 + SIGINT


class Group(click.Group):
    """A group whose domain errors become one line and exit status 1; any other error is a bug and keeps its traceback.

    click itself answers usage errors (exit status 2) and is silent when the reader of a pipe has gone.
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
    """Return how a warning is printed: without the line of Python, which is ours."""
    return f"Warning: {printable(message)}\n"


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
    *(environment.demo, environment.doctor, environment.run),
    *(hub.card, hub.publish, hub.pull, hub.push, hub.verify),
    *(models.list_command, models.show),
    *(weights.cache, weights.convert, weights.export, weights.fold, weights.transplant),
):
    main.add_command(command)
