"""``python -m convstem``, and ``torchrun -m convstem run SCRIPT``."""

from convstem.cli.main import main

main(prog_name="convstem")
