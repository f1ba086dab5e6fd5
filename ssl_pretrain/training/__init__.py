"""Wiring of methods and data to Lightning."""
