"""Structure from motion of one object at a time, from its own tracks, with pycolmap."""
