"""A page to ask a run on: its form, and what is answered."""
