"""Rollout engines: what samples responses from the student."""
