"""Damages real small files at random and reads them: each case ends in the right content, or in one of our errors.

    python -m tests.fuzz [--seconds 60] [--seed 0]
    python -m tests.fuzz --reader config --seed 0 --case 123   # one case again, with its traceback

Anything else (another error, a hang, wrong content) is printed with its seed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.readers import READERS, Reader, WrongContentError

SLOW_SECONDS = 20.0
"""Processor time after which a case counts as a hang, even on a busy machine."""


@dataclass
class Result:
    """Outcomes of one reader's cases."""

    counts: Counter[str] = field(default_factory=Counter)
    """``right`` content, or the name of the error."""
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Return the counts in words."""
        errors = ", ".join(f"{name} {count:,}" for name, count in sorted(self.counts.items()) if name != "right")
        return (
            f"{self.counts.total():9,} cases: {self.counts['right']:,} right; {errors}; {len(self.failures)} failures"
        )


def one(reader: Reader, seed: int, case: int, folder: Path) -> str:
    """Run one case and return ``right`` or the name of our error.

    Raises:
        Exception: any other error from the reader.
        WrongContentError: the reader returned other content than the file's.
    """
    from convstem.errors import ConvStemError

    place = folder / f"{reader.name}-{case}"
    place.mkdir()
    try:
        reader.run(random.Random(f"{reader.name} {seed} {case}"), place)
    except ConvStemError as error:
        return type(error).__name__
    finally:
        shutil.rmtree(place)
    return "right"


def many(reader: Reader, seed: int, enough: Callable[[int], bool], folder: Path) -> Result:
    """Run cases until ``enough`` says stop."""
    result, case = Result(), 0
    while not enough(case):
        start = time.process_time()
        try:
            result.counts[one(reader, seed, case, folder)] += 1
            if (taken := time.process_time() - start) > SLOW_SECONDS:
                raise WrongContentError(f"took {taken:.0f} seconds")
        except Exception as error:
            result.counts["failure"] += 1
            result.failures.append(f"{reader.name} --seed {seed} --case {case}: {type(error).__name__}: {error}")
            print(result.failures[-1], file=sys.stderr, flush=True)
        case += 1
    return result


def for_seconds(seconds: float) -> Callable[[int], bool]:
    """Return a function that tells whether this many seconds have passed since now."""
    end = time.monotonic() + seconds
    return lambda case: time.monotonic() > end


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all readers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=sorted(READERS), help="this one only")
    parser.add_argument("--case", type=int, help="this case only, with its traceback")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    chosen = [READERS[options.reader]] if options.reader else list(READERS.values())
    failures = []
    with tempfile.TemporaryDirectory(prefix="convstem-fuzz-") as folder:
        os.environ["CONVSTEM_CACHE"] = f"{folder}/nowhere/cache"
        Path(folder, "nowhere").touch()  # a file as cache, so that no notes are kept between cases
        if options.case is not None:
            print(one(chosen[0], options.seed, options.case, Path(folder)))
            return 0
        for reader in chosen:
            many(reader, options.seed, lambda case: case == 1, Path(folder))  # import everything before timing cases
            result = many(reader, options.seed, for_seconds(options.seconds / len(chosen)), Path(folder))
            failures += result.failures
            print(f"{reader.name:<9}{result}", flush=True)
    print("\n".join(failures[:50]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
