"""Commands: the recipes, and the command line ``hf-lottery``."""
