"""How names reach timm and torchvision. What is imported with a host is light."""
