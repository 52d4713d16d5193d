"""The page for people and the superseded app's routes."""
