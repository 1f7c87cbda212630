"""timm's Muon, faster on a processor: matrices of one shape are orthogonalised together, and in float32.

A processor without bfloat16 arithmetic takes longer for timm's bfloat16 products of small matrices than for the same in
float32. On the GPUs that Muon was made for it is the other way round.
"""

from __future__ import annotations
