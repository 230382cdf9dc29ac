"""Worked examples: one command for each of several public datasets."""
