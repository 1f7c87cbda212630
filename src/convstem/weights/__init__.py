"""From a weights file to a model's parameters, fast and checked.

Not public: import public names from ``convstem``.
"""
