"""Frozen vision encoders and language models, and the assets that come without a model hub."""
