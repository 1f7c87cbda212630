"""Run timm's and torchvision's own scripts on our names and print the results.

    python -m experiments.drive_scripts --timm-dir CLONE --out experiments/results/drive_scripts.txt
    python -m experiments.drive_scripts --timm-dir CLONE --torchvision-dir CLONE/references/classification

timm's scripts are only in its repository, so it needs a clone. torchvision's come with Debian's source package if there
is apt-get; otherwise give a clone's references/classification. ``FILES`` lists the tests that are run.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "training"
FILES = (
    "test_timm_scripts.py",
    "test_transplanted_tag.py",
    "test_torchvision_scripts.py",
    "test_bad_training.py",
    "test_recipes.py",
)


def run_tests(args: argparse.Namespace, report: Path) -> None:
    """Run the tests with the clones in their environment and write the report."""
    given = {"CONVSTEM_TIMM_SCRIPTS": args.timm_dir, "CONVSTEM_TORCHVISION_SCRIPTS": args.torchvision_dir}
    environment = {**os.environ, **{name: str(path.resolve()) for name, path in given.items() if path}}
    files = [str(TESTS / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "--full", "-m", "full", "-q", f"--junit-xml={report}", *files]
    done = subprocess.run(command, env=environment, check=False, cwd=TESTS.parents[1], stdout=sys.stderr)
    if not report.exists():
        raise SystemExit(f"pytest stopped with exit code {done.returncode} before it ran anything")


def outcome(case: ET.Element) -> str:
    """Return ``passed``, ``failed`` or ``skipped``."""
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    return next((kinds[child.tag] for child in case if child.tag in kinds), "passed")


def case_lines(case: ET.Element) -> list[str]:
    """Return a test's line, and one for each figure it recorded and each reason why it was skipped."""
    lines = [f"{outcome(case):<8}{float(case.get('time', 0)):>7.1f} s  {case.get('name')}"]
    lines += [f"{'':>18}{p.get('name')}: {p.get('value')}" for p in case.iter("property")]
    return lines + [f"{'':>18}{child.get('message')}" for child in case if child.tag == "skipped"]


def commit_of(folder: Path | None) -> str:
    """Return the commit of a clone, or the other source of the scripts."""
    if folder is None:
        return "the source package of Debian trixie"
    command = ["git", "-C", str(folder), "log", "-1", "--format=commit %H of %cs"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "no git repository"


def to_text(report: Path, args: argparse.Namespace) -> str:
    """Return the report: versions and counts, then every test."""
    cases = list(ET.parse(report).iter("testcase"))
    counts = Counter(outcome(case) for case in cases)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm"))
    lines = [
        "timm's and torchvision's own scripts, unmodified, on convstem's names",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, {os.cpu_count()} cores",
        f"timm's scripts: {commit_of(args.timm_dir)}",
        f"torchvision's scripts: {commit_of(args.torchvision_dir)}",
        ", ".join(f"{number} {name}" for name, number in sorted(counts.items())),
    ]
    for name in FILES:
        ours = [case for case in cases if (case.get("classname") or "").endswith(Path(name).stem)]
        lines += ["", name, *(line for case in ours for line in case_lines(case))]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--timm-dir", type=Path, required=True, help="clone of timm's repository")
    parser.add_argument("--torchvision-dir", type=Path, help="references/classification of a clone of torchvision")
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run_tests(args, report)
        text = to_text(report, args)
    print(text, end="")
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    return int("failed" in text.splitlines()[4])


if __name__ == "__main__":
    sys.exit(main())
