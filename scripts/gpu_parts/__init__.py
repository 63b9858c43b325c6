"""The parts of gpu_check.py: each makes one section of its report."""
