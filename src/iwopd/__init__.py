"""On-policy distillation of language models, with a choice of which tokens count.

The library part, for use in other trainers, is `iwopd.numerics`; the rest is the program `iwopd` (see `iwopd.cli`).
"""

__version__ = "0.1.0"
