"""Curves, pictures and tables of a run."""
