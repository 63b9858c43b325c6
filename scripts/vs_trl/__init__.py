"""Parts of scripts/bench_vs_trl.py."""
