"""The model in PyTorch, layer by layer."""
