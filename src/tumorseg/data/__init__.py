"""Data sets: read, checked, audited, divided, and as arrays."""
