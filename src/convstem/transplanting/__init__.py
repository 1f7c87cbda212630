"""Transplant: a patch embedding becomes a conv stem that computes the same function.

Not public: the public names are in ``convstem``.
"""
