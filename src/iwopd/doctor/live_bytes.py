"""Bytes of all tensors alive, and their peak, as PyTorch's operators make and free them."""

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from iwopd._compat import GROUPED_MM, FakeTensor, TorchDispatchMode, tree_leaves


class LiveBytes(TorchDispatchMode):
    """While open, counts the storages that operators return, each once, until they are freed.

    It works on tensors with data and on fake ones, which have a shape and no data. What a kernel takes for itself while
    it runs is not seen.

    Args:
        known: tensors that are there already; not counted.
        gradients: parameters whose `.grad`, as it comes into being, is to be distinguished.

    Attributes:
        now: bytes alive.
        peak: the most there were.
        gradients_at_peak: bytes of `gradients`' `.grad` at that time.
    """

    def __init__(self, known: Iterable[Tensor] = (), gradients: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.peak = self.gradients_at_peak = 0
        self._gradients = 0
        self._sizes: dict[int, int] = {}
        # Kept, so that no other storage can get the identity of one of them.
        self._known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self._watched = list(gradients)
        self._counted: set[int] = set()
        self._stack = ExitStack()

    def __enter__(self) -> "LiveBytes":
        for parameter in self._watched:
            if parameter.grad is None:
                handle = parameter.register_post_accumulate_grad_hook(self._count_gradient)
                self._stack.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._stack.close()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  an operator; torch has no public name for its class
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        # Two gradients of one weight, as of tied embeddings: autograd adds in place, but not while a mode looks on.
        in_place = func is torch.ops.aten.add.Tensor and self._are_gradients(*args[:2])
        result = args[0] if in_place else _run(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    def rest(self) -> None:
        """Begin a new peak at what is alive now."""
        self.peak = self.now

    def _are_gradients(self, left: object, right: object) -> bool:
        if torch.is_grad_enabled() or not (isinstance(left, FakeTensor) and isinstance(right, FakeTensor)):
            return False
        return left.shape == right.shape and any(left.shape == parameter.shape for parameter in self._watched)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._sizes or key in self._known:
            return
        self._sizes[key] = size
        weakref.finalize(storage, self._free, key)
        self.now += size
        if self.now > self.peak:
            self.peak, self.gradients_at_peak = self.now, self._gradients

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None and id(parameter) not in self._counted:
            self._counted.add(id(parameter))
            self._gradients += parameter.grad.nbytes


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:  # noqa: ANN401  as above
    """The operator. PyTorch's shape rule of grouped products, which experts use, takes bfloat16 only; any is meant."""
    if func.name() == GROUPED_MM and isinstance(args[0], FakeTensor):
        left, right = args[:2]
        offsets = args[2] if len(args) > 2 else kwargs["offs"]
        match left.dim(), right.dim():
            case 2, 3:
                shape = (left.shape[0], right.shape[2])
            case 2, 2:
                shape = (offsets.shape[0], left.shape[0], right.shape[1])
            case _:
                shape = (left.shape[1], right.shape[1])
        return left.new_empty(shape)
    return func(*args, **kwargs)
