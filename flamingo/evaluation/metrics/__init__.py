"""What predictions are scored by, one file a kind of answer."""
