"""Transplant: a patch embedding becomes a conv stem that computes the same function."""
