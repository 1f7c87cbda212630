"""The matrix of promises: kinds of names x doors (ways to load weights) x situations.

``python -m tests.support.promises`` prints the numbers of checked and of listed cells, and the reasons.
"""

import pytest

MODULES = ("calls", "cell", "plain", "torchvisions", "whole")
"""Modules with assertions."""

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in MODULES))
