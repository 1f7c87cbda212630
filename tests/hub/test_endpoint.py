"""A password in ``HF_ENDPOINT`` is not printed."""

import pytest
from huggingface_hub import constants

from convstem.hub.failures import explain, web_page, without_password


def test_no_password_in_addresses_and_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@hub.example")
    assert web_page("org/x", "commit", "1") == "https://hub.example/org/x/commit/1"
    for error in (TimeoutError("late"), RuntimeError("for url https://me:secret@hub.example/api")):
        assert "secret" not in str(explain(error, "org/x", None))
    assert without_password("write to me@example.org") == "write to me@example.org"
