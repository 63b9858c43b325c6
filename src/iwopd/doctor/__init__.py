"""Would this run work, and what would it cost? Findings, an estimate of memory, FLOPs and hours, and a live check."""
