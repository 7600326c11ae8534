"""Runs and conditions side by side: tables, tests, curves, and a page to browse predictions."""
