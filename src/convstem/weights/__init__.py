"""From a weights file to a model's parameters, fast and checked.

Not public: what is, is imported from ``convstem`` itself.
"""
