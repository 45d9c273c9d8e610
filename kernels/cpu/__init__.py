"""The C++ engine: the same loop for the CPU, built at first use."""
