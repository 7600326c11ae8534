"""Models and harnesses of other projects: reading theirs, and being read by theirs."""
