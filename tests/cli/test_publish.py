"""`convstem publish` passes its options on and prints the results."""

from typing import Any

import pytest
from click.testing import CliRunner

import convstem
from convstem.cli.main import main
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
