"""Shared options and fixtures. The everyday tests need no network: the Hub is offline, its cache temporary."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.script_runs import Scripts

TESTS = Path(__file__).parent
MARKED = re.compile(r"^pytestmark = \[?pytest\.mark\.full", re.MULTILINE)

# huggingface_hub reads these once, on import.
CACHES = {name: tempfile.mkdtemp(prefix="convstem-tests-") for name in ("HF_HUB_CACHE", "CONVSTEM_CACHE")}
os.environ.update(CACHES, HF_HUB_OFFLINE="1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the slow tests that CI runs")


def pytest_unconfigure() -> None:
    for folder in CACHES.values():  # hundreds of megabytes after --full
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: Any) -> bool | None:
    """Skip files marked as a whole for CI, since their imports take longer than many tests."""
    return True if not config.getoption("--full") and collection_path in _ci_files() else None


def pytest_report_header(config: Any) -> list[str]:
    if config.getoption("--full"):
        return []
    files = ", ".join(str(path.relative_to(TESTS)) for path in _ci_files())
    return [f"with --full only, as in CI: tests and parameters that are marked full, and {files}"]


@cache
def _ci_files() -> list[Path]:
    """Return the test files with the mark on the whole module."""
    return [path for path in sorted(TESTS.rglob("test_*.py")) if MARKED.search(path.read_text(encoding="utf-8"))]


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Deselect what is for CI; to skip two thousand tests one by one would take six seconds."""
    if config.getoption("--full"):
        return
    config.hook.pytest_deselected(items=[item for item in items if "full" in item.keywords])
    items[:] = [item for item in items if "full" not in item.keywords]


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def hub_file() -> Callable[..., None]:
    """Return a function that puts a state dict into the Hub cache like a download of repo_id@main."""
    from safetensors.torch import save_file

    def put(repo_id: str, state_dict: Mapping[str, Tensor], cache: str = os.environ["HF_HUB_CACHE"]) -> None:
        folder = Path(cache) / f"models--{repo_id.replace('/', '--')}"
        commit = "0" * 40
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
        save_file({k: v.contiguous() for k, v in state_dict.items()}, snapshot / "model.safetensors")

    return put


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Record a measurement in the test's report; experiments/drive_scripts.py prints it."""
    return lambda name, value: request.node.user_properties.append((name, value))


@pytest.fixture(scope="session")
def timm_scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """timm's own train.py, validate.py, ... with a tiny image folder."""
    from tests.support.script_runs import Scripts, write_images
    from tests.support.script_sources import copy_scripts, find_timm_scripts

    root = tmp_path_factory.mktemp("timm")
    return Scripts(copy_scripts(find_timm_scripts(), root / "scripts"), write_images(root / "images"), root / "out")


@pytest.fixture(scope="session")
def torchvision_scripts(tmp_path_factory: pytest.TempPathFactory) -> Scripts:
    """torchvision's own references/classification, with a tiny image folder."""
    from tests.support.script_runs import Scripts, write_images
    from tests.support.script_sources import copy_scripts, find_torchvision_scripts

    root = tmp_path_factory.mktemp("torchvision")
    folder = copy_scripts(find_torchvision_scripts(root), root / "scripts")
    return Scripts(folder, write_images(root / "images"), root / "out")
