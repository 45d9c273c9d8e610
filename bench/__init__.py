"""Speed of recurrent layers, side by side: ``python -m bench --help``."""
