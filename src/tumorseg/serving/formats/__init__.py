"""Bytes that somebody sent to slices, and masks back to files of the same kind."""
