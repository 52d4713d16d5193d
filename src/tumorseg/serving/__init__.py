"""The service: a checked model behind BentoML, with the superseded app's pages and routes."""
