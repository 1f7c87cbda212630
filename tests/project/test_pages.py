"""The pages in docs/ point at files and tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
FOLDERS = ("benchmarks", "docs", "experiments", "recipes")
EVERYWHERE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md"))]
EVERYWHERE += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NAMES = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
} | {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def unknown_tests(page: str) -> list[str]:
    """Return tests named on a page that do not exist; ``test_such_...`` stands for all with this prefix."""
    named = re.findall(r"\b(test_\w+?)(_\.\.\.|\b)", page)
    return [name for name, dots in named if not any(n == name or (dots and n.startswith(name)) for n in NAMES)]


def test_an_unknown_test_is_found() -> None:
    assert unknown_tests("`test_no_such_claim` and `test_an_unknown_...`") == ["test_no_such_claim"]


@pytest.mark.parametrize("name", PAGES)
def test_every_claim_names_a_test_that_exists(name: str) -> None:
    assert unknown_tests(PAGES[name]) == []


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert (ROOT / "docs" / path).exists(), path


def missing_files(page: str) -> list[str]:
    """Return files of this repository named on a page that do not exist."""
    named = re.findall(
        r"\b((?:benchmarks|docs|experiments|recipes|src|tests|tools)/[\w/]+\.(?:py|md|yaml|txt))\b", page
    )
    return [path for path in named if not (ROOT / path).exists()]


def test_a_missing_file_is_found() -> None:
    assert missing_files("`tests/test_gone.py::test_it`, tests/conftest.py, recipes/gone.yaml") == [
        "tests/test_gone.py",
        "recipes/gone.yaml",
    ]


@pytest.mark.parametrize("path", EVERYWHERE, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path: Path) -> None:
    assert missing_files(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_left_to_fill_in(name: str) -> None:
    assert not re.findall(r"@[A-Z]+@", PAGES[name])


def unused_words(page: str) -> list[str]:
    """Return words of a glossary that neither the package nor the registry uses."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "registry").glob("*.json")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    cells = re.findall(r"^\| ([^|]+) \| ", page, re.M)
    words = [word for cell in cells if cell != "word" for word in cell.split(", ")]
    return [word for word in words if not re.search(rf"\b{word}", code, re.I)]


def test_an_unused_word_is_found() -> None:
    assert unused_words("| word | meaning |\n|---|---|\n| stem, phlogiston | a |\n| aether | b |\n") == [
        "phlogiston",
        "aether",
    ]


def test_the_glossary_has_the_codes_words() -> None:
    assert unused_words(PAGES["glossary.md"]) == []
