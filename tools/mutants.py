"""Mutation score for each room: changes one thing of ``src/`` at a time and checks whether the everyday tests notice.

    nice -n 19 python -m tools.mutants                 # 300 mutants; continues after an interruption
    nice -n 19 python -m tools.mutants --map           # after a change of src/ or tests/: copies the checkout again
    python -m tools.mutants --again                    # runs tests newer than the map on their room's survivors
    python -m tools.mutants --full                     # runs all tests of their room, CI's too, on survivors
    python -m tools.mutants --control --count 20       # changes nothing: a killed mutant is a bug of this tool
    python -m tools.mutants --table                    # prints the results so far, runs nothing

Everything lies in ``build/mutants``: a copy of the checkout, the map of which test runs which line (coverage contexts),
and ``mutants.jsonl`` with a line for each mutant. A mutant is tested by the tests that run its line, then by others of
its file and room: its own room's first, fast ones first, one set of parameters of each function before another. What
does not fit into the first turn waits until all mutants have had theirs. Tests of CI run with ``--full`` only.
``tools/mutants_equivalent.json`` lists the changes that do not change behaviour, with reasons.

Existing tools do not fit: mutmut skips tables at module level and cannot sample; cosmic-ray starts Python, and torch,
again for each mutant. This tool forks a process that has imported the hosts.
"""

from __future__ import annotations

import argparse
import base64
import compileall
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tools.mutations import Mutant, mutants, sample

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "mutants"
TREE, ROWS = HOME / "tree", HOME / "mutants.jsonl"
EQUIVALENT = ROOT / "tools" / "mutants_equivalent.json"

PARTS = 3
"""Processes that create the map; each writes its coverage and the seconds of its tests."""
SETTINGS = "[run]\nsource_pkgs = convstem\nparallel = true\npatch = subprocess\ndata_file = {}\n"
PRELOADED = ("tests.conftest", "torch", "timm", "torchvision", "transformers", "safetensors.torch", "click.testing")
READERS = ("blocks", "contributing", "docs", "habits", "messages", "mutants", "pages", "packaging", "release", "rooms")
"""Files of ``tests/project`` that read the source, and would notice any change of the text."""

KEPT = ".kept"
"""Suffix of the original of a changed file."""
FEW, SHORT = 250, 30.0
"""Limits of a mutant's first tests: their number, and their seconds in total."""
LONG = 400.0
"""Limit of a survivor's second tests, in seconds."""
WHOLE = 120.0
"""Seconds that all tests of a room may take; ten times as long counts as an endless loop."""


def start(work: Callable[[], int]) -> int:
    """Start a function in a forked process with its own group, and return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            log = os.open(HOME / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            code = int(work())
        except BaseException:  # including pytest's exit
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    return child


def finish(child: int, limit: float) -> int | None:
    """Wait for a process and return its exit code, or None after ``limit`` seconds; kill the rest of its group."""
    end, status = time.monotonic() + limit, None
    while status is None and time.monotonic() < end:
        done, raw = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(raw) if done else None
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # the process or its remaining children
    if status is None:
        os.waitpid(child, 0)
    (HOME / f"{child}.log").replace(HOME / "last.log")
    return status


def failed(child: int) -> Path:
    """Return the file in which a process notes its failed test."""
    return HOME / f"{child}.failed"


class Chosen:
    """Makes pytest run only some tests, in their order (or all), and notes a failed one."""

    def __init__(self, tests: Sequence[str] | None) -> None:
        self.rank = None if tests is None else {test: rank for rank, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keep the chosen tests; a change may have removed some."""
        if self.rank is None:
            return
        items[:] = sorted((one for one in items if one.nodeid in self.rank), key=lambda one: self.rank[one.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a failed test."""
        if report.failed:
            failed(os.getpid()).write_text(report.nodeid)


class Recorder:
    """Records the time of each test, and tells child processes for which test they run."""

    def __init__(self, report: Path) -> None:
        self.report = report
        self.seconds: Counter[str] = Counter()
        self.failed: set[str] = set()
        self.skipped: set[str] = set()

    def pytest_runtest_setup(self, item: Any) -> None:
        """Empty the package's caches, so that each test runs the lines that it depends on."""
        settings = json.loads(base64.b64decode(os.environ["COVERAGE_PROCESS_CONFIG"]))
        settings["context"] = item.nodeid
        os.environ["COVERAGE_PROCESS_CONFIG"] = base64.b64encode(json.dumps(settings).encode()).decode()
        for module in [one for name, one in sys.modules.items() if name.startswith("convstem.")]:
            for value in vars(module).values():
                if callable(clear := getattr(value, "cache_clear", None)) and value.__module__ == module.__name__:
                    clear()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Record the time and outcome of a test."""
        self.seconds[report.nodeid] += report.duration
        if not report.passed:
            (self.failed if report.failed else self.skipped).add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write the passing tests with their seconds, and the failed ones."""
        kept = {
            test: round(seconds, 3) for test, seconds in self.seconds.items() if test not in self.failed | self.skipped
        }
        self.report.write_text(json.dumps({"seconds": kept, "failed": sorted(self.failed)}, indent=0))


def run_tests(arguments: Sequence[str], plugin: object) -> int:
    """Run pytest in this process, as if convstem's hook had been installed when torch was imported."""
    import pytest

    del os.environ["CONVSTEM_AUTOLOAD"]
    sys.modules.pop("_convstem_autoload", None)
    import _convstem_autoload as autoload

    autoload.install()
    for module, host in autoload.HOSTS.items():
        if module in sys.modules:
            autoload.register(host, "torch autoload")
    quiet = ["-q", "-p", "no:cacheprovider", f"--basetemp={HOME / 'tmp'}-{os.getppid()}"]
    preloaded = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return pytest.main([*quiet, *preloaded, *arguments], plugins=[plugin])


def prepare(tree: Path) -> None:
    """Move this process into a copy and import the hosts, but nothing of convstem."""
    os.chdir(tree)
    sys.path[:] = [str(tree / "src"), str(tree), *(path for path in sys.path if path not in ("", str(ROOT)))]
    os.environ.update(CONVSTEM_AUTOLOAD="0", PYTHONPATH=str(tree / "src"), OMP_NUM_THREADS="1")
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "tools")]:
        del sys.modules[name]
    for name in PRELOADED:
        __import__(name)
    import torch

    torch.set_num_threads(1)
    assert not [name for name in sys.modules if name.split(".")[0] == "convstem"]


def copy(tree: Path) -> None:
    """Copy the checkout; its bytecode is checked by hash, since a file may change twice within one second."""
    from tests.support.checkout import copy_checkout

    shutil.rmtree(tree, ignore_errors=True)
    copy_checkout(tree)
    mode = compileall.py_compile.PycInvalidationMode.CHECKED_HASH  # type: ignore[attr-defined]
    compileall.compile_dir(tree / "src", quiet=2, invalidation_mode=mode)


def take_map() -> None:
    """Run the everyday tests once and record which of them run each line; survivors are forgotten."""
    if ROWS.exists():
        killed = [row for row in known().values() if row["found"] == "killed"]
        ROWS.write_text("".join(f"{json.dumps(row)}\n" for row in killed), encoding="utf-8")
    from tests.conftest import _ci_files

    for path in [*HOME.glob("coverage*"), *HOME.glob("tests*.json")]:
        path.unlink()
    left_out = {*_ci_files(), *(TREE / f"tests/project/test_{name}.py" for name in READERS)}
    files = sorted(str(path.relative_to(TREE)) for path in {*TREE.glob("tests/**/test_*.py")} - left_out)
    parts = [start(partial(map_part, part, files[part::PARTS])) for part in range(PARTS)]
    codes = [finish(child, limit=7200) for child in parts]
    failed = [test for path in HOME.glob("tests*.json") for test in json.loads(path.read_text())["failed"]]
    print(f"map: exit codes {codes}, {len(durations())} tests, {len(failed)} fail here:", *failed, sep="\n", flush=True)


def map_part(part: int, files: Sequence[str]) -> int:
    """Run some of the tests and write their part of the map."""
    settings, report = HOME / f"coveragerc{part}", HOME / f"tests{part}.json"
    settings.write_text(SETTINGS.format(HOME / f"coverage{part}"))
    coverage = ["--cov", f"--cov-config={settings}", "--cov-context=test", "--cov-report="]
    return run_tests([*coverage, f"--basetemp={HOME / f'tmp{part}'}", *files], Recorder(report))


def durations() -> dict[str, float]:
    """Return the passing tests of the map, with their seconds."""
    parts = [json.loads(path.read_text())["seconds"] for path in sorted(HOME.glob("tests*.json"))]
    return {test: seconds for part in parts for test, seconds in part.items()}


def passing(mutant: Mutant, seconds: Mapping[str, float]) -> list[str]:
    """Return the tests that run a mutant's lines, then others of its file and room, in the order of trial.

    The others are needed for what runs once: coverage knows a line that runs on import, or whose result is kept, only
    from the first test that needed it.
    """
    from coverage import CoverageData

    first, last = mutant.lines
    through: set[str] = set()
    others = {test for test in seconds if _is_own(test, mutant.room)}
    for path in HOME.glob("coverage[0-9]"):
        data = CoverageData(str(path))
        data.read()
        for line, contexts in data.contexts_by_lineno(str(TREE / "src" / mutant.file)).items():
            tests = {context.partition("|")[0] for context in contexts} & set(seconds)
            (through if first <= line <= last else others).update(tests)
    return [test for tests in (through, others - through) for test in _spread(tests, mutant.room, seconds)]


def _spread(tests: Iterable[str], room: str, seconds: Mapping[str, float]) -> list[str]:
    """Return tests in the order in which they are tried: for each function one set of parameters, then another."""
    turn: Counter[str] = Counter()
    keys = {}
    for test in sorted(tests, key=lambda test: seconds[test]):
        function = test.partition("[")[0]
        keys[test] = (not _is_own(test, room), turn[function], seconds[test])
        turn[function] += 1
    return sorted(keys, key=lambda test: keys[test])


def _is_own(test: str, room: str) -> bool:
    return test.startswith((f"tests/{room}/", f"tests/test_{room}.py"))


def split(tests: Sequence[str], seconds: Mapping[str, float], few: int, limit: float) -> int:
    """Return how many of the first tests to run."""
    total = 0.0
    for index, test in enumerate(tests):
        total += seconds[test]
        if index == few or (index and total > limit):
            return index
    return len(tests)


def newer(room: str) -> list[str]:
    """Copy a room's test files that are newer than the map into the tree, and return them."""
    since = (TREE / "pyproject.toml").stat().st_mtime
    found = [path for path in sorted(ROOT.glob(f"tests/{room}/test_*.py")) if path.stat().st_mtime > since]
    for path in found:
        shutil.copy(path, path.relative_to(ROOT))
    return [str(path.relative_to(ROOT)) for path in found]


def ask(
    mutant: Mutant, files: Sequence[str], tests: Sequence[str] | None, expected: float, changed: bool = True
) -> tuple[str, str]:
    """Return ``killed`` or ``survived``, and the test or exit code that shows it.

    Args:
        files: the test files to run.
        tests: tests of these files; None for all.
    """
    path = Path("src", mutant.file)
    text = path.read_bytes()
    kept = path.with_suffix(KEPT)
    kept.write_bytes(text)
    try:
        path.write_bytes(mutant.apply(text) if changed else text)
        child = start(partial(run_tests, ["-x", *files], Chosen(tests)))
        code = finish(child, limit=300 + 10 * expected)
        by = failed(child).read_text() if failed(child).exists() else ""
        failed(child).unlink(missing_ok=True)
    finally:
        kept.replace(path)
        for name in ("HF_HUB_CACHE", "CONVSTEM_CACHE"):  # from tests/conftest.py; the next mutant gets empty caches
            shutil.rmtree(os.environ[name], ignore_errors=True)
            Path(os.environ[name]).mkdir()
    if code is None:
        return "killed", "timeout"
    if code in (0, 5):  # 5: no tests were found
        return "survived", ""
    return "killed", by or f"exit code {code}"


def judge(mutant: Mutant, row: Mapping[str, Any], changed: bool = True) -> dict[str, Any]:
    """Run the next tests on a mutant and return its row; ``row`` is the previous one."""
    seconds = durations()
    tests = passing(mutant, seconds)
    done = row.get("tests", 0)
    few, limit = (len(tests), LONG) if done else (FEW, SHORT)
    chosen = tests[done : done + split(tests[done:], seconds, few, limit)]
    begin = time.monotonic()
    found, by = "survived", ""
    if chosen:
        files = sorted({test.partition("::")[0] for test in chosen})
        found, by = ask(mutant, files, chosen, sum(map(seconds.__getitem__, chosen)), changed)
    about = {key: value for key, value in asdict(mutant).items() if key not in ("start", "end", "count")}
    left = len(tests) - done - len(chosen) if found == "survived" and not done else 0
    took = round(row.get("seconds", 0) + time.monotonic() - begin, 1)
    return {"id": mutant.id, "room": mutant.room, **about, "found": found, "by": by,
            "tests": done + len(chosen), "left": left, "of": len(tests), "seconds": took}  # fmt: skip


def known() -> dict[str, dict[str, Any]]:
    """Return the last row of each mutant."""
    lines = ROWS.read_text(encoding="utf-8").splitlines() if ROWS.exists() else []
    return {row["id"]: row for row in map(json.loads, lines)}


def note(row: Mapping[str, Any]) -> None:
    """Append a mutant's row."""
    with ROWS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def table(rows: Iterable[Mapping[str, Any]], equivalent: Mapping[str, str]) -> str:
    """Return a table of the rooms' scores; equivalent mutants do not count."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        what = "killed" if row["found"] == "killed" else "equivalent" if row["id"] in equivalent else "survived"
        for room in (row["room"], "all"):
            found[room] += Counter({"mutants": 1, what: 1})
    columns = ("mutants", "killed", "survived", "equivalent")
    lines = [f"| in | {' | '.join(columns)} | score |", "|---" * 6 + "|"]
    for room in [*sorted(found.keys() - {"all"}), *(["all"] if found else [])]:
        counted = found[room]["mutants"] - found[room]["equivalent"]
        score = f"{100 * found[room]['killed'] / counted:.0f} %" if counted else "-"
        lines.append(f"| `{room}` | {' | '.join(str(found[room][column]) for column in columns)} | {score} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line, then print the table and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="how many mutants (300)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice")
    parser.add_argument("--map", action="store_true", help="copy the checkout and make a new map")
    parser.add_argument("--again", action="store_true", help="run newer tests on survivors first")
    parser.add_argument("--full", action="store_true", help="run all tests of their room on survivors, CI's too")
    parser.add_argument("--only", default="", help="only mutants with this start of id or file")
    parser.add_argument("--tests", nargs="+", default=[], help="with --again: test files, or names of tests in them")
    parser.add_argument("--control", action="store_true", help="change nothing: every kill is a bug of this tool")
    parser.add_argument("--tree", default=TREE.name, help="name of the copy; any other name begins at the end")
    parser.add_argument("--table", action="store_true", help="run nothing")
    args = parser.parse_args()
    tree = ROOT if args.table else HOME / args.tree
    if not args.table:
        if args.map or not tree.exists():
            copy(tree)
        for kept in tree.glob(f"src/**/*{KEPT}"):  # from an interrupted run
            kept.replace(kept.with_suffix(".py"))
        prepare(tree)
        if args.map or not durations():
            take_map()
    sources, top = sorted(tree.glob("src/**/*.py")), tree / "src"
    found = [one for path in sources for one in mutants(str(path.relative_to(top)), path.read_text(encoding="utf-8"))]
    chosen = [one for one in sample(found, args.count, args.seed) if one.id.startswith(args.only)
              or one.file.startswith(args.only)]  # fmt: skip
    order = chosen if args.tree == TREE.name else chosen[::-1]
    if args.full:
        run_rooms(order)
    elif not args.table:
        run(order, again=args.again, control=args.control, tests=args.tests)
    rows = [row for one in chosen if (row := known().get(one.id))]
    equivalent = json.loads(EQUIVALENT.read_text(encoding="utf-8"))
    print(table(rows, equivalent), f"\n{len(found):,} places, {len(rows)} of {len(chosen)} mutants tested", sep="\n")
    for row in rows:
        if row["found"] != "killed" and row["id"] not in equivalent:
            print(f"\n{row['id']} {row['file']}:{row['lines'][0]} {row['name']}, {row['kind']}, {row['tests']} tests")
            print(f"  - {row['before']}\n  + {row['after']}")


def run_rooms(chosen: Sequence[Mutant]) -> None:
    """Run all tests of their room on survivors, if the room passes without a change."""
    sound: dict[str, bool] = {}
    for one in chosen:
        row = known().get(one.id, {})
        if row.get("found") != "survived" or row.get("full"):
            continue
        newer(one.room)
        home = "hosts" if one.room == "_convstem_autoload" else one.room
        tests = ["--full", f"tests/{home}" if Path(f"tests/{home}").is_dir() else f"tests/test_{home}.py"]
        if one.room not in sound:
            found, by = ask(one, tests, None, expected=WHOLE, changed=False)
            sound[one.room] = found == "survived"
            print(f"{one.room} without a change: {'passes' if sound[one.room] else by}", flush=True)
        if sound[one.room]:
            found, by = ask(one, tests, None, expected=WHOLE)
            print(f"whole room: {one.id} {one.file} {one.kind} {found} {by}", flush=True)
            note({**row, "found": found, "by": by, "full": True, "left": 0})


def run(chosen: Sequence[Mutant], again: bool, control: bool, tests: Sequence[str] = ()) -> None:
    """Test each mutant, then survivors once more with the tests they have not met."""
    controls: dict[str, dict[str, Any]] = {}
    for file in {test.partition("::")[0] for test in tests}:
        shutil.copy(ROOT / file, file)
    for one in chosen if again else ():
        row = known().get(one.id, {})
        if row.get("found") == "survived" and (files := tests or newer(one.room)):
            found, by = ask(one, files, None, expected=120)
            print(f"new tests: {one.id} {one.file} {one.kind} {found} {by}", flush=True)
            if found == "killed":
                note({**row, "found": found, "by": by, "left": 0})
    if tests:
        return
    for turn in ("first tests", "the rest"):
        for one in chosen:
            row = controls.get(one.id, {}) if control else known().get(one.id, {})
            if not row.get("left", 1) or (turn == "the rest") != bool(row):
                continue
            new = judge(one, row, changed=not control)
            print(f"{turn}: {one.id} {one.file} {one.kind} {new['found']} {new['seconds']} s {new['by']}", flush=True)
            if control:
                controls[one.id] = new
                continue
            note(new)


if __name__ == "__main__":
    main()
