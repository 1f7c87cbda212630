"""Folders, model cards and the Hub: staging, pushing, pulling, verifying, publishing.

Not public: what is, is imported from ``convstem`` itself.
"""
