"""Generators of registry data and cards, and scripts that fetch data. From the checkout: python -m tools.NAME."""
