"""Runs the stock Hub client and convstem under faults, over real HTTP.

python -m benchmarks.hub_faults downloads pushes > benchmarks/results/hub_faults.txt
python -m benchmarks.hub_faults calls > benchmarks/results/hub_calls.txt
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.support.hub_server import Client, HubServer
from tests.support.hub_server.call_table import CALL_ROWS, CALLS, put_models, run_call
from tests.support.hub_server.fault_table import CONVSTEM, ROWS, STOCK, run_killed, run_row, run_together
from tests.support.hub_server.push_table import CONVSTEM_PUSH, PUBLISH, PUSH_ROWS, STOCK_PUSH, run_push_row

DOWNLOADS = {
    **{row.name: partial(run_row, row=row) for row in ROWS},
    "process killed, run again": run_killed,
    "16 threads at once": partial(run_together, threads=True),
    "4 processes at once": partial(run_together, threads=False),
}
PUSHES = {row.name: partial(run_push_row, row=row) for row in PUSH_ROWS}


def table(cases: Any, codes: dict[str, Any], hub: HubServer, client: Client) -> None:
    """Run every case with every code and print the outcomes."""
    for name, run in cases.items():
        print(f"\n{name}")
        for who, code in codes.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                outcome = run(hub=hub, client=client, code=code, cache=Path(folder))
                print(f"  {who:<9}{time.perf_counter() - start:6.1f} s  {outcome[:150]}", flush=True)


def downloads(hub: HubServer, client: Client) -> None:
    """Print the table of downloads of single files."""
    print("\nDOWNLOADS")
    table(DOWNLOADS, {"stock": STOCK, "convstem": CONVSTEM}, hub, client)


def pushes(hub: HubServer, client: Client) -> None:
    """Print the table of pushes."""
    print("\n\nPUSHES (stock: HfApi.upload_folder; publish makes no pull requests)")
    table(PUSHES, {"stock": STOCK_PUSH, "push": CONVSTEM_PUSH, "publish": PUBLISH}, hub, client)


def calls(hub: HubServer, client: Client) -> None:
    """Run every call that reads a model under every fault and print the outcomes."""
    print("\n\nCALLS that read a model: right, healed, clear error, RAW ERROR or SILENT; after an error, once more")
    with tempfile.TemporaryDirectory() as models:
        put_models(hub, Path(models))
    for row in CALL_ROWS:
        print(f"\n{row.name}")
        for call in CALLS:
            with tempfile.TemporaryDirectory() as folder:
                print(f"  {call:<14}{run_call(hub, client, row, call, Path(folder) / 'cache')}", flush=True)


PARTS = {"downloads": downloads, "pushes": pushes, "calls": calls}


def main() -> None:
    """Print the tables named on the command line, or all."""
    import huggingface_hub

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, help="default: all")
    parts = parser.parse_args().parts or PARTS

    hub = HubServer()
    with tempfile.TemporaryDirectory() as home:
        client = Client(**hub.env, HF_HOME=home, HF_TOKEN="writer")
        client("import timm, torchvision, convstem.publishing.push")  # so that no row's time includes it
        print(f"huggingface_hub {huggingface_hub.__version__}, timeouts of 2 and 5 s")
        for part in parts:
            PARTS[part](hub, client)
        client.close()
    hub.close()


if __name__ == "__main__":
    main()
