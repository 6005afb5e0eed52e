"""What the options of every benchmark have to be."""

from __future__ import annotations

from osn_gs.errors import ConfigError


def check_counts(least: int = 1, most: int | None = None, **counts: int) -> None:
    """Raises `ConfigError`, which names the option, for a count below `least` or above `most`."""
    for name, count in counts.items():
        if count < least or (most is not None and count > most):
            expected = f"{least} or more" if most is None else f"{least} to {most}"
            raise ConfigError(f"--{name.replace('_', '-')}: expected {expected}, got {count}.")


def check_image_size(name: str, size: tuple[int, int]) -> None:
    """Raises `ConfigError` for a width or height below 1."""
    if min(size) < 1:
        raise ConfigError(f"--{name}: expected a width and a height of 1 or more, got {size[0]} {size[1]}.")
