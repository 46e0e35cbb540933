"""Checkpoints that verify, and runs that go on from them."""
