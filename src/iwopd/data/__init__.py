"""Problems: rows from a file, the hub or the toy task; filtered, rendered to token ids, handed out step by step."""

from iwopd.data.filters import Filter
from iwopd.data.prompts import fitting, render
from iwopd.data.rows import Row, cell, load_rows, read_json_lines
from iwopd.data.stream import Mixture, Prompts, PromptStream, shares

__all__ = [
    "Filter",
    "Mixture",
    "PromptStream",
    "Prompts",
    "Row",
    "cell",
    "fitting",
    "load_rows",
    "read_json_lines",
    "render",
    "shares",
]
