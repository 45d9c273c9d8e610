"""Compile every plan for six architectures and examine the machine code."""
