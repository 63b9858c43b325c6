"""What a report costs: seconds to write it, its size, and the time until a browser has painted it.

    python scripts/bench_report.py                    1,000 steps and 64 responses of 16,384 tokens
    python scripts/bench_report.py --tokens 1024

Seconds are of this process's CPU. The browser is the one that `make test-browser` gets; without it, its lines are left
out.
"""

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.report_runs import written_run

from iwopd.training.report import FILE, write

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SHOWN = "performance.getEntriesByName('responses-shown')[0]?.startTime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--responses", type=int, default=64, help="half of them before training")
    parser.add_argument("--tokens", type=int, default=16384)
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name) / "run"
        written_run(folder, steps=given.steps, every=50, kept=given.responses // 2, tokens=given.tokens)
        began = process_time()
        write([folder], folder / FILE)
        print(f"written in {process_time() - began:.1f} s, {(folder / FILE).stat().st_size / 1e6:.1f} MB")
        try:
            from playwright.sync_api import sync_playwright
        except ModuleNotFoundError:
            return
        with sync_playwright() as running:
            path = shutil.which("chromium")
            flags = ["--headless", "--no-sandbox", "--disable-gpu"]
            opened: Any = running.chromium.launch_persistent_context(
                f"{name}/profile", executable_path=path, args=flags
            )
            for _ in range(3):
                page = opened.new_page()
                page.goto((folder / FILE).as_uri())
                page.wait_for_selector("html[data-ready]")
                print(f"painted after {page.evaluate(PAINTED):.0f} ms, responses after {page.evaluate(SHOWN):.0f} ms")
                page.close()
            opened.close()


if __name__ == "__main__":
    main()
