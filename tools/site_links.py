"""A MkDocs hook (see ``mkdocs.yml``) that adds linked files from elsewhere in the repository to the site, and ranks
tasks above reference in the site's search.

Pages are also read as plain Markdown, where ``../experiments/results/x.png`` leads to the file. In the site the file is
below ``repository/``, and its links are rewritten; Markdown files become pages, and their links are followed too.
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

# The page of messages is only for search engines; generated pages and contributors' pages rank below the others.
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
    """Add the files outside ``docs/`` that the pages link to."""
    for path in sorted(linked(sorted(DOCS.glob("*.md")))):
        files.append(File.generated(config, site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> str:
    """Rewrite a page's links to the files' places in the site, and set its search rank."""
    path = page.file.src_uri
    page.meta.setdefault("search", SEARCH.get(path, LATER if path.startswith("repository/") else {}))
    source = Path(str(page.file.abs_src_path))
    here = os.path.dirname(site_path(source))

    def moved(match: re.Match[str]) -> str:
        target = resolved(source, match[1])
        return match[1] if target is None else os.path.relpath(site_path(target), here)

    return LINK.sub(moved, markdown)


def linked(pages: list[Path]) -> set[Path]:
    """Return every file outside ``docs/`` that these pages link to, directly or through other pages."""
    found: set[Path] = set()
    for page in pages:  # the list grows during the loop
        links = LINK.findall(page.read_text(encoding="utf-8"))
        new = {path for link in links if (path := resolved(page, link)) and not path.is_relative_to(DOCS)} - found
        found |= new
        pages += [path for path in sorted(new) if path.suffix == ".md"]
    return found


def resolved(page: Path, link: str) -> Path | None:
    """Return the file that a page's relative link leads to, for a folder its README; None if there is none."""
    path = (page.parent / link).resolve()
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def site_path(path: Path) -> str:
    """Return a file's path in the site's sources."""
    inside = path.relative_to(DOCS) if path.is_relative_to(DOCS) else Path("repository") / path.relative_to(ROOT)
    return inside.as_posix()
