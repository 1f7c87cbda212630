"""Fixtures for tests of weights on a device."""

import pytest
import torch

from convstem.weights import deferred
from tests.support.fake_device import FakeCopier


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> list[FakeCopier]:
    """Treat the CPU as an accelerator; return the copiers that are created."""
    made: list[FakeCopier] = []

    def make(device: torch.device) -> FakeCopier:
        made.append(FakeCopier())
        return made[-1]

    monkeypatch.setattr(deferred, "has_streams", lambda device: device.type == "cpu")
    monkeypatch.setattr(deferred, "DeviceCopier", make)
    return made
