"""How names reach timm and torchvision. Importing a host imports only light modules from here.

Not public: import public names from ``convstem``.
"""
