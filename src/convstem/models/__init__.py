"""The model classes of both hosts; imported when a model is built.

Not public: import public names from ``convstem``.
"""
