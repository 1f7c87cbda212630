"""Inference: folding, exporting.

Not public: what is, is imported from ``convstem`` itself.
"""
