"""Transplant: a patch embedding becomes a conv stem that computes the same function.

Not public: import public names from ``convstem``.
"""
