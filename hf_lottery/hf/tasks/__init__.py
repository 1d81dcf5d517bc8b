"""Tasks: the data and the networks that the recipes train."""
