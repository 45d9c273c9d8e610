"""The recurrence as differentiable operations of PyTorch."""
