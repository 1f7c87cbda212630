"""One command makes the docs' pictures from experiments/results."""

import shutil
from pathlib import Path

import pytest

from experiments import paper_table, plots


@pytest.mark.full
def test_pictures_are_drawn_again_from_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [folder for pattern in plots.DRAWN for folder in paper_table.RESULTS.glob(pattern)]
    drawn = {path.relative_to(paper_table.RESULTS) for folder in folders for path in folder.glob("*.png")}
    assert len(drawn) >= len(folders) > 0
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(plots, "RESULTS", tmp_path)
    assert not list(tmp_path.rglob("*.png"))
    plots.main()
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")} == drawn
