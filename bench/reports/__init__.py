"""Programs that write the other pages of bench/results."""
