"""Evaluation in context: plans, prompts, scoring, controls, statistics and the report."""
