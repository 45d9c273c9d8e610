"""Races between engines and torch.nn, gated by correctness."""
