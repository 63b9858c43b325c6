"""Checks of models and hub names that need no torch."""
