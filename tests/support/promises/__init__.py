"""The matrix of promises: kinds of names x doors by which weights come in x situations.

``python -m tests.support.promises`` prints how many cells are checked, how many listed, and why.
"""

import pytest

MODULES = ("calls", "cell", "plain", "torchvisions", "whole")
"""Those with assertions."""

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in MODULES))
