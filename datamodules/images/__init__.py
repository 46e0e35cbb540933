"""Bytes to upright, cropped pixels."""
