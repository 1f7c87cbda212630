"""How names reach timm and torchvision. Importing a host imports only light modules from here.

Not public: the public names are in ``convstem``.
"""
