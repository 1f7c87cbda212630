"""A Hub for tests: the protocol that huggingface_hub speaks, over real HTTP, with faults on demand.

Two origins, as on the real Hub: the API and small files on one port, large files (LFS) on another that refuses tokens.
"""

from hub_server.client import Client, run_python
from hub_server.faults import Fault
from hub_server.server import HubServer

__all__ = ["Client", "Fault", "HubServer", "run_python"]
