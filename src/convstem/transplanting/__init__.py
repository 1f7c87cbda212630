"""Transplant: a patch embedding becomes a conv stem that computes the same function.

Not public: what is, is imported from ``convstem`` itself.
"""
