"""Studies: several arms, each a training run per seed, compared with a baseline.

arms.py (from config to runs), students.py (which student each seed trains), workers.py and cluster.py (carry runs out),
curves.py (what a run's metrics.jsonl says), results.py (figures, differences, verdicts), plots.py and report.py
(reports), study_table.py (the live table).
"""
