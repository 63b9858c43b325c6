"""The command line: `iwopd VERB [Hydra overrides]`. Listing the verbs imports nothing heavy."""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches

from iwopd import __version__
from iwopd.machine import streams
from iwopd.runs.interrupts import ignore_schedulers

VERBS = {
    "train": ("iwopd.commands.train", "distil a teacher into a student, on policy"),
    "ablate": ("iwopd.commands.ablate", "weightings compared over seeds, with statistics and a report"),
    "diagnose": ("iwopd.commands.diagnose", "where in a response do student and teacher disagree? before any training"),
    "eval": ("iwopd.commands.evaluate", "mean@k and pass@k of a model (eval.model=PATH)"),
    "report": ("iwopd.commands.report", "report.html of a run, or of several beside each other: iwopd report runs/a"),
    "push": ("iwopd.commands.push", "upload a run's final model to the hub (push.repo=USER/NAME push.run=PATH)"),
    "doctor": ("iwopd.commands.doctor", "would this run work here, and what would it cost? on which card?"),
}

USAGE = """\
usage: iwopd VERB [GROUP=NAME] [+experiment=NAME] [KEY=VALUE ...]

verbs:
{verbs}

examples:
  iwopd train                                   the toy pair, on a CPU, in minutes
  iwopd train weighting=first30 optim.lr=3e-6   any group or field of the config
  iwopd train run.dir=runs/a run.resume=true    resume from the last checkpoint
  iwopd ablate weighting=last30                 that weighting against uniform, over eight seeds
  iwopd diagnose diagnose.run=runs/a            position bias of a pair, and how training changed it
  iwopd eval eval.model=runs/a/final            measure a trained model
  iwopd report runs/a runs/b                    both on one page, with their responses token by token
  iwopd push push.run=runs/a push.repo=ME/NAME  share it
  iwopd doctor doctor.card=h100                 memory and hours on a card, before renting one

iwopd VERB --help lists the config groups and the composed config; --cfg job prints it as YAML; -m sweeps.
eval "$(iwopd -sc install=bash)" has the shell complete verbs, groups, presets and fields (docs/getting-started.md).
"""


def usage() -> str:
    """The verbs, with examples."""
    return USAGE.format(verbs="\n".join(f"  {verb:<9} {text}" for verb, (_, text) in VERBS.items()))


def main() -> None:
    """Entry point of the program `iwopd`.

    Exit status: 0, 1 if a check fails, 2 for bad input, 3 where a training stopped because responses stop ending
    (`run.on_collapse=stop`), 128 + n where signal n asked to stop: 130 after Ctrl-C, 141 where nobody reads standard
    output any more.
    """
    streams.install()
    try:
        run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to save
        sys.exit(130)
    except SystemExit:
        ignore_schedulers()
        raise
    finally:
        sys.stdout.flush()


def run(arguments: Sequence[str]) -> None:
    """Carry out a command line."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return
    verb, *rest = arguments
    if verb == "--version":
        print(f"iwopd {__version__}")
        return
    if verb in ("-sc", "--shell-completion"):
        verb = completed_verb() if rest[:1] and rest[0].startswith("query=") else "train"
        if not verb:
            print(*VERBS)
            return
        rest = arguments
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        print(f"iwopd: {verb}: no such verb; {hint}use one of {', '.join(VERBS)}", file=sys.stderr)
        sys.exit(2)

    from iwopd.launch import launch  # Hydra takes 0.3 s, which the list of verbs does without

    launch(verb, VERBS[verb][0], rest)


def completed_verb() -> str | None:
    """Of the command line that a shell wants completed: its verb, taken out, since Hydra knows of none."""
    program, *words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) < 2:
        return None
    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return words[0]


if __name__ == "__main__":
    main()
