"""The command line: a thin edge that parses, calls a library function and prints."""

from __future__ import annotations

from typing import Any

import click

import convstem
from convstem.cli import environment, hub, models, weights
from convstem.errors import CheckpointError


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


for command in (
    *(environment.demo, environment.doctor, environment.run),
    *(hub.card, hub.publish, hub.pull, hub.push, hub.verify),
    *(models.list_command, models.show),
    *(weights.cache, weights.convert, weights.transplant),
):
    main.add_command(command)
