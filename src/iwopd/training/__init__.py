"""The loop of the paper's algorithm, and its stages: score, update, parity."""
