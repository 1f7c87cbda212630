"""The model classes of both hosts; imported when a model is built.

Not public: what is, is imported from ``convstem`` itself.
"""
