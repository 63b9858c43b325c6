"""Several processes that train together: one program on every rank, the same records on all of them.

Only sampling, scoring and the update's passes are divided. Seeds come from (seed, step, prompt, sample), micro-batches
from the whole batch's lengths, and sums are added in the order of ranks: what is learnt does not depend on how many
processes there are, but for rounding, and repeats to the bit for the same number.
"""

from iwopd.parallel.world import World, processes, world

__all__ = ["World", "processes", "world"]
