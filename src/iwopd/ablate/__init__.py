"""Studies: several arms, each a training run per seed, compared with a baseline.

arms.py (from config to runs), workers.py and cluster.py (carry runs out), curves.py (what a run's metrics.jsonl says),
results.py (figures, differences, verdicts), plots.py and report.py (reports), study_table.py (the live table).
"""
