"""The stages of a step after the engine has generated: score, update, parity after the sync; and evaluation."""

from iwopd.stages.evaluation import Evaluation, evaluate
from iwopd.stages.parity import Parity, Thresholds, check_parity
from iwopd.stages.score import score
from iwopd.stages.update import update

__all__ = ["Evaluation", "Parity", "Thresholds", "check_parity", "evaluate", "score", "update"]
