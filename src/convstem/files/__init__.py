"""Files on this machine: safetensors, checkpoints, and what is kept between runs."""
