"""Writes the pages of ``docs/`` that are generated from the package: the API, the command line, messages, sizes.

python -m tools.pages           # write
python -m tools.pages --check   # exit status 1 if a page is stale
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from click.testing import CliRunner

import convstem
from convstem import errors
from convstem.cli.main import main as command_line
from convstem.registry import catalog
from convstem.registry.catalog import named_trunks
from convstem.registry.records import Architecture, ModelSpec, macs, num_params, stem_macs, stem_params
from tools.generated import write_or_check
from tools.messages import messages_page

DOCS = Path(__file__).parents[1] / "docs"

# docs/api.md

API_HEAD = """# Python API

These are all public names, importable from `convstem`, and below them the classes of `convstem.errors`. The site shows
their full documentation; as plain Markdown this page has the tables alone, and `help(convstem.load)` prints the rest.
Written by `python -m tools.pages`.

| name | what it does |
|---|---|
"""

ERRORS_HEAD = """
## Errors

Every error that a user can cause is one of these. `convstem.ConvStemError` is the root of all; each is the class beside
it as well, so `except convstem.errors.HubError` and `except OSError` both work. Any other error is a bug in convstem.
[Every error message](messages.md) has their texts.

| class of `convstem.errors` | also a | what it says |
|---|---|---|
"""


def api_page() -> str:
    """Return the page as Markdown."""
    names = [name for name in sorted(dir(convstem), key=str.lower) if not name.startswith("__")]
    rows = "".join(f"| `{name}` | {_first_line(getattr(convstem, name))} |\n" for name in names)
    classes = error_classes()
    error_rows = "".join(f"| `{name}` | {_also(kind)} | {_first_line(kind)} |\n" for name, kind in classes.items())
    full = [*names, *(f"errors.{name}" for name in classes)]
    return API_HEAD + rows + ERRORS_HEAD + error_rows + "".join(f"\n::: convstem.{name}\n" for name in full)


def error_classes() -> dict[str, type[Exception]]:
    """Return the classes of ``convstem.errors`` by name, without the root, which is public itself."""
    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    return {name: found[name] for name in sorted(found) if found[name] is not errors.ConvStemError}


def _also(kind: type[Exception]) -> str:
    """Return the other base classes of an error: the builtin class, or our class that derives from one."""
    return ", ".join(f"`{base.__name__}`" for base in kind.__bases__ if base is not errors.ConvStemError)


def _first_line(value: object) -> str:
    """Return the first paragraph of a docstring, in one line of Markdown."""
    paragraph = (inspect.getdoc(value) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("``", "`").replace("|", r"\|")


# docs/cli.md

CLI_HEAD = """# Command line

What `convstem` and each of its commands print for `--help`. Written by `python -m tools.pages`.
"""
WIDTH = 100  # columns; otherwise click uses the terminal's width


def cli_page() -> str:
    """Return the page as Markdown."""
    return CLI_HEAD + "".join(
        f"\n## {' '.join(path)}\n\n```text\n{_help(path[1:])}```\n" for path in _commands(command_line, ("convstem",))
    )


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of each command below it, sorted."""
    yield path
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(child, (*path, name))


def _help(words: tuple[str, ...]) -> str:
    result = CliRunner().invoke(
        command_line, [*words, "--help"], prog_name="convstem", terminal_width=WIDTH, max_content_width=WIDTH
    )
    assert result.exit_code == 0, result.output
    return result.output


# docs/sizes.md

SIZES_HEAD = """# Sizes

Parameters in millions and multiply-adds of one image in billions (GMACs), with the head of the architecture's first
weights (1000 classes without any) and at the image size shown. "Patchify" is the same trunk behind one convolution of
the patch's size, so the difference is the stem. `convstem show NAME` prints one model in full. Written by
`python -m tools.pages`.

| timm name | torchvision name | image | stem channels | params | params, patchify | GMACs | GMACs, patchify |
|---|---|---|---|---|---|---|---|
"""


def sizes_page() -> str:
    """Return the page as Markdown."""
    specs = [catalog.built(spec) for spec in catalog.models().values()] + list(named_trunks().values())
    return SIZES_HEAD + "".join(f"| {' | '.join(_cells(spec))} |\n" for spec in specs)


def _cells(spec: Architecture) -> list[str]:
    in_chans, height, width = spec.input_size
    per_patch = in_chans * spec.patch_size**2 * spec.embed_dim
    patches = (height // spec.patch_size) * (width // spec.patch_size)
    params, gmacs = num_params(spec), macs(spec)
    torchvision = f"`{spec.torchvision}`" if isinstance(spec, ModelSpec) and spec.torchvision else "-"
    return [
        *(f"`{spec.name}`", torchvision, str(height), ", ".join(map(str, spec.stem.channels))),
        *(f"{params / 1e6:.1f}", f"{(params - stem_params(spec) + per_patch + spec.embed_dim) / 1e6:.1f}"),
        *(f"{gmacs / 1e9:.2f}", f"{(gmacs - stem_macs(spec) + patches * per_patch) / 1e9:.2f}"),
    ]


# All pages

PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "messages.md": messages_page,
    "sizes.md": sizes_page,
}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` compare them; return the exit status."""
    return max([write_or_check(DOCS / name, page(), "--check" in arguments, "pages") for name, page in PAGES.items()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
