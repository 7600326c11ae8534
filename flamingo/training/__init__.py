"""Training: loss, optimisation, checkpoints, tracking and the loop that joins them."""
