"""How names reach timm and torchvision. What is imported with a host is light.

Not public: what is, is imported from ``convstem`` itself.
"""
