"""The joint optimizer: bootstrap, alternating rounds, scene steps."""
