"""Folders, model cards and the Hub: staging, pushing, pulling, verifying, publishing."""
