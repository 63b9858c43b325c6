"""Standard output and error as processes really have them: closed, full, unread, narrow; and default run folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

PRINTS = "from iwopd.machine import streams; streams.install(); import os, sys; print('é :100:', flush=True); "


def python(code: str, shell: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -c CODE` under a shell that redirects."""
    command = ["bash", "-c", f'{sys.executable} -c "$0" {shell}', code]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_a_reader_that_went_away_ends_the_program_as_sigpipe_would() -> None:
    done = python(PRINTS + "[print('x' * 9999, flush=True) for _ in range(99)]", "| head -n 1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (141, "é :100:\n", "")


def test_what_is_only_flushed_at_the_end_leaves_no_traceback() -> None:
    done = python("import sys; sys.argv = ['iwopd', '--help']; from iwopd.cli import main; main()", "| true; exit 0")
    assert done.stderr == ""


@pytest.mark.parametrize("redirection", ["> /dev/full", "> /dev/full 2>&1", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_that_cannot_be_written_is_dropped(redirection: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = f"file = open({str(file)!r}, 'w'); print('on'); print('on', file=sys.stderr); file.write('kept')"
    done = python(PRINTS + code, redirection)
    assert (done.returncode, done.stdout) == (0, "")
    assert file.read_text() == "kept"  # a closed descriptor's number was not the file's


def test_a_character_that_the_encoding_lacks_is_written_as_its_code() -> None:
    assert python(PRINTS, PYTHONIOENCODING="ascii").stdout == "\\xe9 :100:\n"


def test_a_pipe_that_does_not_block_loses_nothing() -> None:
    code = PRINTS + "os.set_blocking(1, False); print('x' * 2_000_000)"
    assert python(code, "| (sleep 0.2; wc -c)").stdout.strip() == str(len("é :100:\n".encode()) + 2_000_001)


def test_standard_error_that_nobody_reads_ends_nothing() -> None:
    done = python(PRINTS + "[print('x' * 9999, file=sys.stderr) for _ in range(99)]; print('end')", "2> >(true)")
    assert (done.returncode, done.stdout) == (0, "é :100:\nend\n")


def test_runs_started_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    code = """
import os, time
from types import SimpleNamespace
from iwopd.runs import naming
from iwopd.config import RunConfig
naming.datetime = SimpleNamespace(now=lambda now=naming.datetime.now(): now)
begin = time.time() + 0.2
for _ in range(8):
    if not os.fork():
        time.sleep(begin - time.time())
        config = SimpleNamespace(run=RunConfig())
        naming.settle(config, "train", claim=True)
        os.write(1, f"{config.run.dir} ".encode())
        os._exit(0)
for _ in range(8):
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    first, *others = sorted(done.stdout.split(), key=lambda folder: (len(folder), folder))
    assert first.startswith("runs/train-")
    assert others == [f"{first}-{number}" for number in range(2, 9)]
    assert {f"runs/{folder.name}" for folder in (tmp_path / "runs").iterdir()} == {first, *others}
