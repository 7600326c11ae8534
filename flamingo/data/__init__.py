"""Data: interleaved sequences from sources, mixed, tokenised, collated, with cached features."""
