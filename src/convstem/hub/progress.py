"""huggingface_hub's progress bars, shown or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars(show: bool) -> Iterator[None]:
    """Switch huggingface_hub's progress bars off for a while, unless they are to be shown."""
    from huggingface_hub import utils

    if show or utils.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        utils.enable_progress_bars()  # type: ignore[attr-defined]
