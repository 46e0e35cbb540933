"""Bytes from http, s3 and gs: retried, resumed, checked."""
