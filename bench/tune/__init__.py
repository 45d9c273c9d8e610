"""Searches and measures what plans are made of: launches on a GPU, engines on a CPU."""
