"""From masks to counts to figures, and what may be concluded."""
