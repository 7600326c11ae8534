"""What a run will cost, from its configuration alone: parameters, FLOPs, memory and days."""
