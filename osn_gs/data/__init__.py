"""Scene folders in the layout of the released OSN code, and the built-in demo scene."""
