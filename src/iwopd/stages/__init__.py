"""The three stages of a step, in the order they run: generate, score, update; and evaluation beside them."""

from iwopd.stages.evaluation import Evaluation, evaluate
from iwopd.stages.score import score
from iwopd.stages.update import update

__all__ = ["Evaluation", "evaluate", "score", "update"]
