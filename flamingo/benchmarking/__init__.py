"""Timing our model beside the bare language model and the peers, on equal work."""
