"""K object groups with their poses and scale ranges, placed for object scales and a time."""
