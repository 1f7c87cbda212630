"""Private names of the libraries that we build on, all in one place.

Not public: what is, is imported from ``convstem`` itself.
"""
