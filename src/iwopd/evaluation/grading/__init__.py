"""Is a response right? A grader gives a verdict on its text and the problem it answers."""

from iwopd.evaluation.grading.base import ExactGrader, Grader, Verdict
from iwopd.evaluation.grading.mathematics import MathGrader
from iwopd.evaluation.grading.programs import CodeGrader, code_rows

__all__ = ["CodeGrader", "ExactGrader", "Grader", "MathGrader", "Verdict", "code_rows"]
