"""A page to ask a run on: its form, what is answered, and the image as the encoder sees it."""
