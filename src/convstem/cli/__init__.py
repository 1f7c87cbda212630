"""The command line.

Not public: what is, is imported from ``convstem`` itself.
"""
