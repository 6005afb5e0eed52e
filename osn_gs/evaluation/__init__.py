"""Image, depth and object-map metrics."""
