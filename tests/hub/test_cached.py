"""The config in the Hub cache, in its commit's folder."""

from pathlib import Path

from convstem.hub.read import cached_config

COMMIT = "1" * 40


def test_a_config_is_that_of_the_branch_in_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--m"
    assert cached_config("org/m", None, tmp_path) is None
    config = folder / "snapshots" / COMMIT / "config.json"
    for path, text in ((config, "{}"), (folder / "refs" / "main", COMMIT)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert cached_config("org/m", None, tmp_path) == cached_config("org/m", COMMIT, tmp_path) == config
    config.unlink()
    absent = folder / ".no_exist" / COMMIT / "config.json"  # the client's note that a commit has no such file
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert cached_config("org/m", None, tmp_path) is None
