"""The machine and this process: cores, memory, threads, standard streams."""
