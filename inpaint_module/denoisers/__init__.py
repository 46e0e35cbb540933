"""Denoisers: made or grown from a base model, adapted, and called."""
