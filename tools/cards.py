"""Writes ``hub_cards/``: one model card per row of ``registry/weights.json`` with our own weights.

python -m tools.cards           # write
python -m tools.cards --check   # exit status 1 if a card is stale
"""

import sys
from pathlib import Path
from typing import Any

from convstem.publishing.card import TEMPLATE, render
from convstem.publishing.card_facts import facts_of_entry
from convstem.registry import catalog
from convstem.registry.tables import rows

FOLDER = Path(__file__).parents[1] / "hub_cards"


def cards() -> dict[str, str]:
    """Return file name -> text of every card; other projects' weights have their own cards on the Hub."""
    entries = [catalog.weights()[name] for name in rows("weights")]
    return {f"{entry.name}.md": render(facts_of_entry(entry)) for entry in entries if entry.transform != "convert"}


def differing(expected: Any, folder: Path) -> list[str]:
    """Return the cards that are missing, stale or left over, sorted."""
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.md") if path.name != TEMPLATE}
    return sorted(name for name in expected.keys() | present if expected.get(name) != present.get(name))


def main(arguments: Any) -> int:
    """Write the cards, or with ``--check`` compare them; return the exit status."""
    expected = cards()
    wrong = differing(expected, FOLDER)
    if "--check" in arguments:
        print(
            f"out of date: {', '.join(wrong)}; run python -m tools.cards"
            if wrong
            else f"{len(expected)} cards are up to date"
        )
        return 1 if wrong else 0
    for name in wrong:
        path = FOLDER / name
        path.write_text(expected[name], encoding="utf-8") if name in expected else path.unlink()
    print(f"written: {', '.join(wrong) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
