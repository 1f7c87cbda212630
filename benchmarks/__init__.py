"""Measurements of speed, memory and exactness. Run from the checkout: python -m benchmarks.NAME."""
