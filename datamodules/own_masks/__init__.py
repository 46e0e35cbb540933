"""Masks that come with the data."""
