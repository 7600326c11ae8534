"""A page to ask a run on: what is answered, what is drawn, what may be uploaded, and the page."""
