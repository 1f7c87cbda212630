"""Folders, model cards and the Hub: staging, pushing, pulling, verifying, publishing.

Not public: import public names from ``convstem``.
"""
