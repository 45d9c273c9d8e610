"""What people run recurrent layers for, as benchmarks: each model as its project builds it."""
