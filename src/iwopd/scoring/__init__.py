"""Teachers: what scores the student's rollouts."""
