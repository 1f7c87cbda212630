"""``python -m convstem``, and ``torchrun -m convstem run SCRIPT``."""

from convstem.cli import main

main(prog_name="convstem")
