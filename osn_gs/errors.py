"""Errors a user can cause. A tool prints one as a single line and exits with code 2."""


class OsnGsError(Exception):
    """Bad input: the message says what was expected, what arrived and what to try."""


class DatasetError(OsnGsError):
    """A scene folder that cannot be read."""


class ConfigError(OsnGsError):
    """A configuration file or option that cannot be used."""


class CheckpointError(OsnGsError):
    """A run folder that cannot be resumed or opened."""
