"""What users get wrong in a study: one line, status 2, nothing written, before torch is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import ONE_THREAD, process, refused

ONE = "ablate.students=[toy://smoke/student]"
WRONG = [
    ("ablate.arms=[uniform,firts30]", "ablate.arms=firts30: weighting=firts30", "did you mean first30?"),
    ("weighting=firts30", "weighting=firts30", "did you mean first30?"),
    ("ablate.seeds=0", "ablate.seeds=0", "1 to 1000"),
    ("ablate.seeds=[]", "ablate.seeds=[]", "[1,2,3]"),
    ("ablate.seeds=[1,1]", "ablate.seeds=[1,1]", "duplicate seed"),
    ("ablate.seeds=1.5", "ablate.seeds=1.5", "number of seeds"),
    ("ablate.seeds=[-1]", "ablate.seeds=[-1]", "at least 0"),
    ("ablate.arms=[]", "ablate.arms=[]", "nothing to compare"),
    ("ablate.arms=[uniform,iw,iw]", "ablate.arms=[uniform,iw,iw]", "duplicate arm iw"),
    ("ablate.arms=[uniform,3]", "ablate.arms[1]=3", "neither a weighting nor a mapping"),
    ("ablate.arms=[first30,iw]", "ablate.baseline=uniform", "not among the arms first30, iw"),
    (f"{ONE} ablate.arms=[uniform,{{name: a, student: toy}}]", "ablate.arms=a: student=toy", "names the students"),
    (
        f"{ONE} ablate.arms=[uniform,{{name: a, student.path: x}}]",
        "ablate.arms=a: student.path=x",
        "names the students",
    ),
    ("ablate.arms=[uniform,{weighting: iw}]", "ablate.arms[1]={weighting: iw}", "no name"),
    ("ablate.arms=[uniform,{name: ../a, weighting: iw}]", "../a", "becomes a folder"),
    ("ablate.arms=[uniform,{name: a, seed: 3}]", "seed", "the study's to set"),
    ("ablate.arms=[uniform,{name: a, weighting.gama: 1}]", "weighting.gama=1", "did you mean weighting.gamma?"),
    ("ablate.arms=[{name: a, weighting.gamma: -1},uniform]", "ablate.arms=a: weighting.gamma=-1", "at least 0"),
    ("ablate.arms=[uniform,{name: a, student.path: /none}]", "ablate.arms=a: student.path=/none", "does not exist"),
    ("benchmark=[]", "benchmark=[]", "e.g. benchmark=[toy]"),
    ("ablate.match=token", "ablate.match=token", "did you mean tokens?"),
    ("ablate.workers=0", "ablate.workers=0", "at least 1"),
    ("ablate.arm=[iw]", "ablate.arm=[iw]", "did you mean ablate.arms?"),
    ("ablate.students=[]", "ablate.students=[]", "names no student"),
    ("ablate.students=[toy://smoke/student,toy://smoke/student]", "ablate.students=[", "duplicate student"),
    ("ablate.students=[/none]", "ablate.students=/none", "does not exist"),
    ("ablate.students=[toy://smoke/studnt]", "ablate.students=toy://smoke/studnt", "did you mean toy://smoke/student?"),
    ("ablate.students=toy://smoke/student", "ablate.students=toy://smoke/student", "not a list"),
    ("ablate.students=['~nobody-here/a']", "ablate.students[0]=~nobody-here/a", "there is no user nobody-here"),
    ("student.path=/none ablate.students=[toy://smoke/student]", "student.path=/none", "names the students already"),
    ("student=hf ablate.students=[/none]", "ablate.students=/none", "does not exist"),
    ("seed=3", "seed=3", "ablate.seeds=[3,…]"),
    ("weighting=uniform", "weighting=uniform", "the baseline itself"),
    ("weighting.gamma=1", "weighting.gamma=1", "of which arm?"),
    ("weighting=iw ablate.arms=[uniform,iw]", "weighting=iw", "lists the arms already"),
    ("-m weighting=iw,first30", "--multirun", "ablate.arms"),
]


@pytest.mark.cli
@pytest.mark.parametrize(("overrides", "names", "says"), WRONG, ids=[case[0] for case in WRONG])
def test_a_mistake_is_one_line_before_anything_is_written(
    overrides: str, names: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = re.split(r" (?=[\w.]+=)", overrides)
    given = [part for item in given for part in (item.split() if item.startswith("-m") else [item])]
    line = refused(capsys, "ablate", f"run.dir={tmp_path / 'study'}", *given)
    assert names in line
    assert says in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_a_mistake_in_any_arm_comes_before_torch_and_so_does_a_missing_matplotlib(tmp_path: Path) -> None:
    for heavy in ("torch", "transformers", "datasets"):
        (tmp_path / f"{heavy}.py").write_text(f"raise RuntimeError('{heavy} was imported')")
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = process("ablate", "ablate.arms=[uniform,iww]", cwd=tmp_path, **environment)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'matplotlib' else find(name, *rest)\n"
        "sys.argv = ['iwopd', 'ablate']; from iwopd.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ONE_THREAD, **environment},
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'iwopd[report]'" in done.stderr
