"""Compares the speed of recurrent layers: ``python -m bench --help``."""
