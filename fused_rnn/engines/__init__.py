"""What can run a recurrence, and the one decision which of them does."""
