"""`convstem publish` and `convstem push` pass their options on and print the results."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import convstem
from convstem.cli.main import main
from convstem.publishing.commit import PushResult
from convstem.publishing.publish import Publication


@pytest.mark.parametrize(("options", "private"), [((), False), (("--private",), True)])
def test_the_command_passes_on_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], private: bool
) -> None:
    called: dict[str, Any] = {}

    def publish(*arguments: Any, report: Any, **named: Any) -> list[Publication]:
        called.update(named, arguments=arguments)
        row = Publication("a.b", "org/a.b", "failed", "no room")
        report(row)
        return [row]

    monkeypatch.setattr(convstem, "publish", publish)
    done = CliRunner().invoke(main, ["publish", "--namespace", "org", "--only", "a*", "--dry-run", *options])
    assert called == {"arguments": ("org", "a*"), "dry_run": True, "private": private}
    assert (done.exit_code, done.output) == (1, "failed    org/a.b  no room\n")


def test_push_passes_on_what_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: dict[str, Any] = {}

    def push(*arguments: Any, **named: Any) -> PushResult:
        called.update(named, arguments=arguments)
        return PushResult("org/m", None, None, {"config.json": "send"}, changed=True, note="not compared")

    monkeypatch.setattr(convstem, "push", push)
    card, labels = tmp_path / "card.md", tmp_path / "labels"
    card.write_text("# m")
    labels.write_text("cat\ndog\n")
    options = {
        "license": "mit", "tag": "a.b", "revision": "v2", "card": str(card), "metric": "acc@1=81.5", "dataset": "d",
        "labels": str(labels), "base-model": "org/base", "architecture": "vit_nano4_convstem",
    }  # fmt: skip
    flags = ["--create-pr", "--use-ema", "--dry-run", "--private"]
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = CliRunner().invoke(main, ["push", "folder", "org/m", *given, *flags])
    assert called == {
        "arguments": ("folder", "org/m"), "license": "mit", "tag": "a.b", "revision": "v2", "card": card,
        "metrics": {"acc@1": 81.5}, "dataset": "d", "labels": ["cat", "dog"], "base_model": "org/base",
        "architecture": "vit_nano4_convstem", "create_pr": True, "use_ema": True, "dry_run": True, "private": True,
    }  # fmt: skip
    assert done.output == "send    config.json\nnot compared\ndry run: nothing was sent to org/m\n"
    refused = CliRunner().invoke(main, ["push", "folder", "org/m", "--license", "mit", "--card", str(tmp_path)])
    assert (refused.exit_code, "is a directory" in refused.output) == (2, True)
