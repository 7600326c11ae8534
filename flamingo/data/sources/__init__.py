"""Sources of training sequences, one file each."""
