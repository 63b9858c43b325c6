"""One module per verb, each with `run(config)`."""
