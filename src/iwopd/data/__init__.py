"""Problems: rows from a file, the hub or the toy task; filtered, rendered to token ids, handed out step by step."""

from iwopd.data.filters import Filter
from iwopd.data.prompts import TeacherTemplate, answers_within, drop_overlong, render
from iwopd.data.rows import get_column, load_rows, text_problem
from iwopd.data.stream import Mixture, Prompts, PromptStream, shares
from iwopd.data.table import Row
from iwopd.data.values import text_of

__all__ = [
    "Filter",
    "Mixture",
    "PromptStream",
    "Prompts",
    "Row",
    "TeacherTemplate",
    "answers_within",
    "drop_overlong",
    "get_column",
    "load_rows",
    "render",
    "shares",
    "text_of",
    "text_problem",
]
