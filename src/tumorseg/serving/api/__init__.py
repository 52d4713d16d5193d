"""The API for programs, around which the service stands."""
