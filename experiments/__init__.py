"""Experiments with results. Run from the checkout: python -m experiments.NAME."""
