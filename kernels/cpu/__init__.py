"""The C++ engine: the loop over time for the CPU, built at first use."""
