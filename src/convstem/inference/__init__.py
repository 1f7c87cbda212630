"""Inference: folding, exporting. Not public but for ``convstem.fold``."""
