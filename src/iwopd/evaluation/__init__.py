"""Benchmarks, mean@k and pass@k."""
