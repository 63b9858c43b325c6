"""Is a response right? A grader gives a verdict on its text and the problem it answers."""

from iwopd.grading.base import ExactGrader, Grader, Verdict
from iwopd.grading.mathematics import MathGrader

__all__ = ["ExactGrader", "Grader", "MathGrader", "Verdict"]
