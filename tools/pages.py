"""Writes the pages of ``docs/`` that are read off the package: the API, the command line, messages, sizes.

python -m tools.pages           # write
python -m tools.pages --check   # exit status 1 if a page is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tools.generated import write_or_check
from tools.page_api import api_page
from tools.page_cli import cli_page
from tools.page_messages import messages_page
from tools.page_sizes import sizes_page

DOCS = Path(__file__).parents[1] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "messages.md": messages_page,
    "sizes.md": sizes_page,
}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with ``--check`` compare them."""
    return max([write_or_check(DOCS / name, page(), "--check" in arguments, "pages") for name, page in PAGES.items()])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
