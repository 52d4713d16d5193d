"""Pictures, the report, and the cards of model and data."""
