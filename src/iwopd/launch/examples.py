"""How `iwopd VERB --help` ends: three examples, and the page of the documentation."""

EXAMPLES = {
    "train": (
        "docs/getting-started.md",
        "iwopd train +experiment=smoke",
        "iwopd train weighting=first30 optim.lr=1e-4",
        "iwopd train run.dir=runs/a run.resume=true",
    ),
    "ablate": (
        "docs/ablations.md",
        "iwopd ablate weighting=last30",
        "iwopd ablate 'ablate.arms=[uniform,iw]' ablate.seeds=4",
        "iwopd ablate run.dir=runs/study",
    ),
    "diagnose": (
        "docs/diagnose.md",
        "iwopd diagnose",
        "iwopd diagnose diagnose.run=runs/a",
        "iwopd diagnose student=hf student.path=MODEL teacher=hf teacher.path=MODEL",
    ),
    "eval": (
        "docs/evaluation.md",
        "iwopd eval eval.model=runs/a/final",
        "iwopd eval eval.model=runs/a/final eval.k=4 eval.n=16",
        "iwopd eval eval.model=MODEL 'benchmark=[file]' eval.benchmarks.file.path=test.jsonl",
    ),
    "push": (
        "docs/runs.md",
        "iwopd push push.run=runs/a push.repo=ME/NAME",
        "iwopd push push.run=runs/a push.repo=ME/NAME push.private=false",
        "iwopd push push.folder=runs/a/final push.repo=ME/NAME push.revision=draft",
    ),
    "report": (
        "docs/report.md",
        "iwopd report runs/a",
        "iwopd report runs/a runs/b",
        "iwopd report runs/a report.output=a.html",
    ),
    "doctor": (
        "docs/doctor.md",
        "iwopd doctor",
        "iwopd doctor doctor.card=h100",
        "iwopd doctor +experiment=aime doctor.card=h100 doctor.gpus=8",
    ),
}


def examples(verb: str) -> str:
    """Lines for the end of a verb's help."""
    page, *commands = EXAMPLES[verb]
    return "\n".join(["", "== Examples ==", *(f"  {command}" for command in commands), "", f"More is in {page}."])
