"""Conv-stem Vision Transformers as named, pretrained models in timm and torchvision.

Importing convstem registers the names; it imports neither timm nor torchvision: hosts that are not imported yet get
the names at the end of their own import.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import _convstem_autoload
from convstem.errors import ConvStemError
from convstem.hosts.registration import register, register_loaded

__version__ = "0.1.0"

# Public name -> module, imported on first use so that `import convstem` stays light.
_LAZY = {
    "StemSpec": "convstem.registry.stem_spec",
    "convert": "convstem.layouts.conversion",
    "freeze_stem": "convstem.stem.freeze",
    "list_models": "convstem.registry.describe",
    "load": "convstem.loading",
    "publish": "convstem.publishing.publish",
    "pull": "convstem.publishing.pull",
    "push": "convstem.publishing.push",
    "transplant": "convstem.transplanting.surgery",
    "verify": "convstem.publishing.verify",
}

__all__ = [
    "ConvStemError",
    "StemSpec",
    "convert",
    "freeze_stem",
    "list_models",
    "load",
    "publish",
    "pull",
    "push",
    "register",
    "transplant",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'convstem' has no attribute {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_convstem_autoload.install_finder("import convstem")
register_loaded("import convstem")
