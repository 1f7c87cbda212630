"""Prints how many tests each run skipped, and why: python -m tools.skips REPORT.xml ... (of pytest's --junit-xml)."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def reasons(report: Path) -> Counter[str]:
    """Return how often each reason occurs in a report."""
    skipped = (case.find("skipped") for case in ET.parse(report).iter("testcase"))
    return Counter(str(found.get("message")) for found in skipped if found is not None)


def main(reports: Sequence[str]) -> None:
    """Print a line for each report, followed by one for each reason."""
    for path in map(Path, reports):
        found = reasons(path)
        print(f"{path.stem}: {found.total()} tests skipped")
        print("".join(f"  {count} x {reason}\n" for reason, count in found.most_common()), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
