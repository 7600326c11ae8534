"""Sweeps over arms and seeds: what is to be run, how far it is, running it."""
