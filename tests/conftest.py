"""Shared switches and fixtures."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the slow tests that CI runs")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="slow: runs in CI, or with --full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)
