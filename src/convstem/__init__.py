"""Conv-stem Vision Transformers as named, pretrained models in timm and torchvision.

Importing convstem registers the names; it imports neither timm nor torchvision: hosts that are not imported yet get
the names at the end of their own import. The public names are those of ``__init__.pyi``, each imported on first use,
and the classes of ``convstem.errors``; every other module below is private.
"""

import lazy_loader

import _convstem_autoload
from convstem.hosts.registration import register_loaded

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

_convstem_autoload.install_finder("import convstem")
register_loaded("import convstem")
