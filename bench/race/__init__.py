"""Races between engines and torch.nn, once their results are checked."""
