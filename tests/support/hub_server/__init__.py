"""A Hub for tests: huggingface_hub's protocol over real HTTP, with faults on demand.

Two origins, as on the real Hub: the API and small files on one port, large files (LFS) on another that refuses tokens.
"""

from tests.support.hub_server.client import Client, run_python
from tests.support.hub_server.faults import Fault
from tests.support.hub_server.server import HubServer

__all__ = ["Client", "Fault", "HubServer", "run_python"]
