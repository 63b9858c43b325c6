"""Language models of transformers: batches of tokens, log-probs chunk by chunk, the student and its optimiser."""
