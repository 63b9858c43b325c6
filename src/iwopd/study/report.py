from pathlib import Path
import json


def write_report(results, folder: Path):
    (folder / "study.json").write_text(json.dumps(results, indent=1))
    return ["x"]
