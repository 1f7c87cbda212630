"""From a weights file to a model's parameters, fast and checked."""
