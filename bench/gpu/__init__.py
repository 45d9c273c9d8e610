"""The first hour with a GPU: all checks and all figures in one go, in one folder."""
