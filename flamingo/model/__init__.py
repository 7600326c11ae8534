"""The model: resampler, gated cross-attention, and how a frozen LM is made to read media."""
