"""The model in JAX, layer by layer."""
