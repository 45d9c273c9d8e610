"""Checks of what users give: arguments of modules, tensors of operations."""
