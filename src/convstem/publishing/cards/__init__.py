"""Model cards and licences.

Not public: what is, is imported from ``convstem`` itself.
"""
