"""Which combinations of object scales explain the video: ranges, exact oracle, network, samplers."""
