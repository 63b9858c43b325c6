"""What mkdocs adds to the files of docs/: README as the first page, and the tables of the configuration reference."""

import re
from pathlib import Path
from typing import Any

from config_reference import reference
from mkdocs.structure.files import File, Files

README = Path(__file__).resolve().parents[1] / "README.md"


def on_files(files: Files, config: Any) -> Files:
    """README, with its links as they are from docs/."""
    text = README.read_text(encoding="utf-8").replace("](docs/", "](")
    text = re.sub(r"\[([^]]+)\]\(CONTRIBUTING\.md\)", r"\1", text)  # it is not part of the site
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The tables, below what the page says of them."""
    return f"{markdown}\n{reference()}" if page.file.src_uri == "configuration.md" else markdown
