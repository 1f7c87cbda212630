"""Conv-stem Vision Transformers as named, pretrained models in timm and torchvision.

Importing convstem registers the names without importing timm or torchvision: a host that is not imported yet gets them
at the end of its own import. The public names are those in ``_NAMES``, each imported on first use, and the classes of
``convstem.errors``. Every other module is private.
"""

import lazy_loader

import _convstem_autoload
from convstem.hosts.registration import register_loaded

__version__ = "0.1.0"

# Repeats __init__.pyi, which type checkers and editors read but zip files and frozen applications lack.
_NAMES = {
    "errors": ["ConvStemError"],
    "features": ["feature_pyramid"],
    "hosts.describe": ["list_models"],
    "hosts.registration": ["register"],
    "inference": ["fold"],
    "layouts.conversion": ["convert"],
    "loading": ["load"],
    "publishing.publish": ["publish"],
    "publishing.pull": ["pull"],
    "publishing.push": ["push"],
    "publishing.verify": ["verify"],
    "registry.stem_spec": ["StemSpec"],
    "stem.find": ["freeze_stem"],
    "transplanting.surgery": ["transplant"],
}

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_NAMES)

_convstem_autoload.install_finder("import convstem")
register_loaded("import convstem")
