"""The matrix products of a layer: forward, backward and gradient."""
