"""The service: a checked model behind BentoML, with the seed app's pages and routes."""
