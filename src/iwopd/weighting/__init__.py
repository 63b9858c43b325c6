"""How much each token of a response counts."""
