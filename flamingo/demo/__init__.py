"""A page to ask a run on: what is answered, what the encoder sees, what may be uploaded, and the page."""
