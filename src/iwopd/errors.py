"""What can go wrong, as a small tree. Each error prints as one line that says what to do, and the program exits with 2.

IwopdError
├── ConfigError       a setting: its key, its value, the reason, the fix      (ValueError)
├── DataError         a dataset: its file, line and column                    (ValueError)
├── ModelError        a model folder, its weights or its tokenizer            (ValueError)
├── EngineError       an engine or server that does not start, answer or serve the right weights (RuntimeError)
├── RunFolderError    a run folder or a checkpoint in it                      (OSError)
├── NonFiniteError    NaN or infinity in log-probs, loss or gradient          (ArithmeticError)
├── OutOfMemoryError  one sequence alone does not fit                         (MemoryError)
├── ProcessError      another process of the run that failed or does not answer   (RuntimeError)
└── UnsupportedVersionError  a library without a private part that is needed  (ImportError)
"""

from typing import Self


class IwopdError(Exception):
    """Root of the errors a user can cause and fix."""


class ConfigError(IwopdError, ValueError):
    """One or several wrong settings, one line each.

    Args:
        problems: lines of the form ``key=value: reason; fix``.
    """

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[Self], tuple[str, ...]]:
        return type(self), self.problems


class DataError(IwopdError, ValueError):
    """A dataset that cannot be used as asked."""


class ModelError(IwopdError, ValueError):
    """A model folder, weights file or tokenizer that cannot be used as asked."""


class EngineError(IwopdError, RuntimeError):
    """A rollout engine or a server that does not start, does not answer, or serves other weights than it should."""


class RunFolderError(IwopdError, OSError):
    """A run folder that cannot be written, holds another run, or has no checkpoint that can be read."""


class NonFiniteError(IwopdError, ArithmeticError):
    """NaN or infinity where a number was needed; raised before the optimiser step that would have spread it."""


class ProcessError(IwopdError, RuntimeError):
    """Another process of the run that failed, was killed, or does not answer."""


class OutOfMemoryError(IwopdError, MemoryError):
    """A single sequence that does not fit, after the micro-batch was halved as far as it goes."""


class UnsupportedVersionError(IwopdError, ImportError):
    """An installed library has no longer, or not yet, a private part that the program needs; see `iwopd._compat`."""


def loading_error(key: str, path: str, problem: str, error: Exception, fix: str) -> ModelError:
    """What an error of transformers means for the user: its first line, or that a model's own code may not run.

    Args:
        key: the setting that names the model.
        problem: what could not be done with it.
    """
    if "trust_remote_code" in str(error):
        section = "student" if key == "eval.model" else key.removesuffix(".path")  # `iwopd eval` uses the student's
        return ModelError(
            f"{key}={path}: comes with Python code of its own, which may not run; read it, and if you trust it set "
            f"{section}.trust_remote_code=true"
        )
    return ModelError(f"{key}={path}: {problem}: {first_line(error)}; {fix}")


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line; its type where it says nothing, as an AssertionError may."""
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
