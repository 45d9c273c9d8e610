"""Reports that write bench/results."""
