"""What a run writes and shows: its folder and checkpoints, metrics and their mirrors, the console, the model card."""
