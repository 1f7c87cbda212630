"""The public names of convstem, for type checkers and editors; ``__init__.py`` has the same list."""

# The module ``errors`` is public too: ``except convstem.errors.HubError``.
from .errors import ConvStemError as ConvStemError
from .features import feature_pyramid as feature_pyramid
from .hosts.describe import list_models as list_models
from .hosts.registration import register as register
from .inference import fold as fold
from .layouts.conversion import convert as convert
from .loading import load as load
from .publishing.publish import publish as publish
from .publishing.pull import pull as pull
from .publishing.push import push as push
from .publishing.verify import verify as verify
from .registry.stem_spec import StemSpec as StemSpec
from .stem.find import freeze_stem as freeze_stem
from .transplanting.surgery import transplant as transplant

__version__: str
