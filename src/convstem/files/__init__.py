"""Files on this machine: safetensors, checkpoints, and what is kept between runs.

Not public: what is, is imported from ``convstem`` itself.
"""
