"""Scripts that generate files of this repository or fetch data. Run from the checkout: python -m tools.NAME."""
