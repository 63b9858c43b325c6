"""Every private part of another library that this program uses; nothing else imports one.

Each is loaded with its first use, `from iwopd._compat import NAME`, so that this module costs nothing. One that an
installed version does not have is an error that says which versions do.
"""

from collections.abc import Callable
from importlib import import_module, metadata
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from iwopd.errors import UnsupportedVersionError

if TYPE_CHECKING:  # the same as PRIVATE, for type checkers
    from hydra._internal.utils import get_args_parser as get_args_parser
    from torch import Tensor
    from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependentOutputException
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._pytree import tree_leaves as tree_leaves
    from transformers.core_model_loading import revert_weight_conversion as revert_weight_conversion

# From the oldest release that pyproject.toml allows to before the first that was not tried.
SUPPORTED = {
    "hydra-core": ">=1.3.2,<1.4",
    "torch": ">=2.11,<2.14",
    "transformers": ">=5.17,<5.20",
    "vllm": ">=0.32,<0.33",
}

PRIVATE = {
    "get_args_parser": ("hydra-core", "hydra._internal.utils"),  # so that a wrong flag is one line
    "FakeTensor": ("torch", "torch._subclasses.fake_tensor"),  # shapes without data
    "FakeTensorMode": ("torch", "torch._subclasses.fake_tensor"),
    "DataDependentOutputException": ("torch", "torch._subclasses.fake_tensor"),
    "TorchDispatchMode": ("torch", "torch.utils._python_dispatch"),  # sees every operator
    "tree_leaves": ("torch", "torch.utils._pytree"),
    "revert_weight_conversion": ("transformers", "transformers.core_model_loading"),  # names as in HF checkpoints
}

GROUPED_MM = "aten::_grouped_mm"  # the operator under torch.nn.functional.grouped_mm
FAKE_TENSOR_LOG = "torch._subclasses.fake_tensor"


def __getattr__(name: str) -> object:
    if name not in PRIVATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return load(*PRIVATE[name], name)


def load(package: str, module: str, name: str) -> object:
    """`module.name`, dots in `name` included.

    Raises:
        ModuleNotFoundError: the library is not installed.
        UnsupportedVersionError: the installed version has no such thing.
    """
    library = import_module(module.partition(".")[0])
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        versions = f"{package}{SUPPORTED[package]}"
        raise UnsupportedVersionError(
            f"{package} {_version(package, library)}: {module} has no {name}, which iwopd needs ({error}); it works "
            f"with {versions}: pip install '{versions}'"
        ) from error


def onednn_linear() -> "Callable[..., Tensor] | None":
    """TorchInductor's x·Wᵀ + b by oneDNN, (states, weight, bias, "none", [], ""); None where torch has it not: it is
    faster on some CPUs, and nothing needs it."""
    try:
        return load("torch", "torch", "ops.mkldnn._linear_pointwise")  # pyright: ignore[reportReturnType]
    except UnsupportedVersionError:
        return None


def onednn_pack() -> "Callable[[Tensor], Tensor] | None":
    """A bfloat16 matrix in the layout of `onednn_linear`; None where torch or the CPU has it not."""
    try:
        if load("torch", "torch", "ops.mkldnn._is_mkldnn_bf16_supported")():  # pyright: ignore[reportCallIssue]
            return load("torch", "torch", "ops.mkldnn._reorder_linear_weight")  # pyright: ignore[reportReturnType]
    except UnsupportedVersionError:
        pass
    return None


def leave_transformers_uncompiled() -> None:
    """Where vLLM has no code of its own for an architecture it compiles transformers', by changing the very class of
    which the trainer's model is one; that stops working then. Uncompiled, both do."""
    module, name = "vllm.model_executor.models.transformers", "TransformersForCausalLM"
    method = "_decorate_for_torch_compile"
    load("vllm", module, f"{name}.{method}")
    setattr(load("vllm", module, name), method, lambda self: None)


def name_shared_memory(run: str) -> None:
    """Ranks that are one engine of vLLM's CPU build name their shared memory the same in every run; what a killed run
    leaves would keep the next from starting.

    Args:
        run: a name that no other run has, the same on all ranks.
    """
    module, name, method = (
        "vllm.distributed.device_communicators.cpu_communicator",
        "_CPUSHMDistributed",
        "make_group_name",
    )
    found: Any = load("vllm", module, f"{name}.{method}")

    def named(communicator: object) -> str:
        return f"{run}{str(found(communicator)).strip('/')}"

    setattr(load("vllm", module, name), method, staticmethod(named))


def _version(package: str, library: object) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # vLLM's CPU build is a package of another name
        return str(getattr(library, "__version__", "of an unknown version"))
