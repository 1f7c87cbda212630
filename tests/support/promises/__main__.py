"""Prints the number of checked cells at each door for each kind, and the listed cells with reasons."""

from tests.support.promises.cells import ALL, CHECKED
from tests.support.promises.matrix import DOORS, KINDS, listed

if __name__ == "__main__":
    print(f"{len(ALL)} cells, {len(CHECKED)} checked, {len(ALL) - len(CHECKED)} listed")
    print(f"{'checked':16}", *(f"{kind:>12}" for kind in KINDS))
    for door in DOORS:
        counts = [sum(cell[:2] == (kind, door) for cell in CHECKED) for kind in KINDS]
        print(f"{door:16}", *(f"{count:12}" for count in counts))
    reasons = [listed(*cell) for cell in ALL]
    for reason in dict.fromkeys(filter(None, reasons)):
        print(f"{reasons.count(reason):6} listed: {reason}")
