"""A hook of MkDocs (see ``mkdocs.yml``): files elsewhere in the repository that the pages link to come into the site,
and the site's own search finds tasks before reference.

Pages are read as plain Markdown too, where ``../experiments/results/x.png`` leads to the file. In the site the file
lies below ``repository/``, and the link follows it; Markdown files become pages, whose links are followed as well.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")

# The page of messages is for search engines; generated pages and those for contributors come after the others.
SEARCH: dict[str, dict[str, Any]] = {
    "messages.md": {"exclude": True},
    "repository/README.md": {"exclude": True},
    "index.md": {"boost": 4},
    "project.md": {"boost": 4},
    "quickstart.md": {"boost": 2},
    "families.md": {"boost": 2},
    "troubleshooting.md": {"boost": 2},
    "api.md": {"boost": 0.5},
    "cli.md": {"boost": 0.5},
}
LATER = {"boost": 0.2}


def on_files(files: Files, config: MkDocsConfig, **kwargs: Any) -> Files:
    """Add the files outside of ``docs/`` that the pages lead to."""
    for path in sorted(linked(sorted(DOCS.glob("*.md")))):
        files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Lead a page's links to where the files are in the site, and tell the search about the page."""
    path = page.file.src_uri
    page.meta.setdefault("search", SEARCH.get(path, LATER if path.startswith("repository/") else {}))
    source = Path(str(page.file.abs_src_path))
    here = os.path.dirname(site_path(source))

    def moved(match: re.Match[str]) -> str:
        target = resolved(source, match[1])
        return match[1] if target is None else os.path.relpath(site_path(target), here)

    return LINK.sub(moved, markdown)


def linked(pages: list[Path]) -> set[Path]:
    """Return every file outside of ``docs/`` that these pages lead to, over further pages too."""
    found: set[Path] = set()
    for page in pages:  # the list grows while it is read
        links = LINK.findall(page.read_text(encoding="utf-8"))
        new = {path for link in links if (path := resolved(page, link)) and not path.is_relative_to(DOCS)} - found
        found |= new
        pages += [path for path in sorted(new) if path.suffix == ".md"]
    return found


def resolved(page: Path, link: str) -> Path | None:
    """Return the file that a page's relative link leads to, a folder's README for a folder; None if there is none."""
    path = (page.parent / link).resolve()
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def site_path(path: Path) -> str:
    """Return a file's path in the sources of the site."""
    inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else Path("repository") / path.relative_to(ROOT)
    return inside.as_posix()
