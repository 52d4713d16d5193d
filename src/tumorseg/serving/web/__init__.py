"""The page for people and the seed's routes."""
