"""Files on this machine: safetensors, checkpoints, and notes kept between runs.

Not public: import public names from ``convstem``.
"""
