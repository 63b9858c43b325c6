"""A model without data, and what its passes keep in memory.

Activations are not a formula here. The product's own code (`LanguageModel`, the chunks of the head, PyTorch's autograd,
peft, gradient checkpointing, autocast) is run on fake tensors, which have a shape, a dtype and no data, and `LiveBytes`
counts what is alive. So it holds for any architecture that transformers can make, and changes when the code changes.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel, masking_utils

from iwopd._compat import FAKE_TENSOR_LOG, DataDependentOutputException, FakeTensorMode
from iwopd.doctor.findings import NotEstimatedError
from iwopd.doctor.live_bytes import LiveBytes
from iwopd.errors import ModelError, first_line
from iwopd.models.batch import Tokens
from iwopd.models.evaluation_mode import adapter_dropouts, evaluation_mode
from iwopd.models.language_model import LanguageModel, chunk_tokens, keep_attention_cap
from iwopd.models.readouts import measured_against
from iwopd.numerics import TokenSignal, full_signal, top_k_signal
from iwopd.rollout.base import Sampling
from iwopd.rollout.caches import cache_argument, new_cache
from iwopd.rollout.hf import draw, sampling_logprobs
from iwopd.training.objective import Objective


@dataclass(frozen=True)
class Work:
    """A batch of equal sequences: `rows` of `prompt` tokens and a response whose window is ``[start, stop)``."""

    rows: int
    prompt: int
    start: int
    stop: int

    @property
    def read(self) -> int:
        """Tokens the model reads; the last one is predicted only."""
        return self.rows * (self.prompt + self.stop - 1)

    @property
    def scored(self) -> int:
        """Tokens whose log-probs are made."""
        return self.rows * (self.stop - self.start)


@dataclass(frozen=True)
class Pass:
    """Bytes of one pass beside the weights.

    Attributes:
        peak: the most that was alive.
        kept: of an update, what the layers kept for backward; of a rollout, keys and values at their longest.
        gradients: of the peak, the parameters' gradients.
    """

    peak: int
    kept: int = 0
    gradients: int = 0


class FakeModel:
    """A model of `config`'s shape.

    Args:
        config: transformers' configuration.
        device: "cpu" or "cuda": the kind of device the estimate is for.
        checkpointing: recompute activations in backward.
        adapt: puts adapters on the model.

    Raises:
        ModelError: transformers cannot make a causal language model of it.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        dtype: str,
        attention: str = "auto",
        device: str = "cpu",
        autocast: bool = False,
        checkpointing: bool = False,
        trust_remote_code: bool = False,
        adapt: Callable[[Any], Any] | None = None,
    ):
        self._fake = FakeTensorMode()
        with self._quiet(), self._fake:
            try:
                model = AutoModelForCausalLM.from_config(
                    copy.deepcopy(config),  # it is written to
                    dtype=getattr(torch, dtype),
                    attn_implementation=None if attention == "auto" else attention,
                    trust_remote_code=trust_remote_code,
                )
            except DataDependentOutputException as error:
                raise NotEstimatedError(
                    f"{config.model_type} cannot be made without data: {first_line(error)}"
                ) from error
            except Exception as error:  # transformers raises a dozen types here
                raise ModelError(f"no causal language model can be made of it: {first_line(error)}") from error
            keep_attention_cap(model, attention)
            if adapt is not None:
                with _replaced(nn.Module, "to", lambda module, *_, **__: module):  # fake tensors cannot be moved
                    self.wrapped = adapt(model)
            if checkpointing:
                # Nothing random happens without data, and the generator's state is data.
                options = {"use_reentrant": False, "preserve_rng_state": False}
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
                if adapt is not None:
                    model.enable_input_require_grads()
            self.lm = _FakeLanguageModel(model, device, autocast)
        self.checkpointing = checkpointing

    @property
    def model(self) -> PreTrainedModel:
        """transformers' model, its parameters fake."""
        return self.lm.model

    def trained(self) -> list[nn.Parameter]:
        """The parameters that get gradients."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def update(self, work: Work, *, first: bool, objective: Objective | None = None, teacher_width: int = 1) -> Pass:
        """Forward and backward of one micro-batch.

        Args:
            first: no gradients are there yet; else all are, and are not counted.
            objective: whose signal says what is made of the logits; None for the log-probs of sampled tokens.
            teacher_width: of the teacher's hidden states, for the signal "full".
        """
        with self._estimating("an update"):
            trained, kept = self.trained(), list[int]()
            for parameter in trained:
                parameter.grad = None if first else torch.empty_like(parameter)
            tokens = _tokens(work)
            with evaluation_mode(self.model), LiveBytes(self._there(), trained) as live:
                for dropout in adapter_dropouts(self.model):
                    dropout.train()

                def readout(lm: LanguageModel, states: Tensor, targets: Tensor) -> Tensor:
                    kept.append(live.now)
                    if objective is None or objective.signal.kind == "sampled":
                        return lm.logprobs_of(states, targets)
                    signal = _signal(objective, len(targets), lm.vocabulary, teacher_width)
                    trained, known = objective.measures()
                    found = measured_against([signal], trained, known)(lm, states, targets)
                    return torch.stack([found[name] for name in trained])

                self.lm(tokens, readout).sum().backward()
            for parameter in trained:
                parameter.grad = None
            return Pass(live.peak, kept[0], live.gradients_at_peak)

    def score(self, work: Work) -> Pass:
        """Log-probs without gradients."""
        with self._estimating("scoring"), torch.no_grad():
            self.model.eval()
            tokens = _tokens(work)
            with LiveBytes(self._there()) as live:
                self.lm.token_logprobs(tokens)
            return Pass(live.peak)

    def rollout(self, rows: int, prompt: int, response: int, sampling: Sampling) -> Pass:
        """Sampling with a cache of keys and values, as `HfEngine` does it, with prompts of several lengths."""
        with self._estimating("sampling"), torch.no_grad():
            self.model.eval()
            with LiveBytes(self._there()) as live, self.lm.autocast():
                cache: Any = new_cache(self.lm)
                logits = self._read(cache, rows, prompt, prompt)
                _lengthen(cache, prompt + response - 1)
                kept = sum(part.nbytes for layer in cache.layers for part in _held(layer))
                choices = sampling_logprobs(logits, sampling)
                draw(choices, torch.empty(rows, dtype=torch.float64))
                del choices
                self._read(cache, rows, 1, prompt + response)
            return Pass(live.peak, kept)

    def _read(self, cache: DynamicCache, rows: int, new: int, seen: int) -> Tensor:
        output = self.lm.decoder(
            input_ids=torch.empty(rows, new, dtype=torch.long),
            attention_mask=torch.empty(rows, seen, dtype=torch.long),
            position_ids=torch.empty(rows, new, dtype=torch.long),
            use_cache=True,
            **{cache_argument(self.lm) or "past_key_values": cache},
        )
        return self.lm.head(output.last_hidden_state[:, -1])

    def _there(self) -> list[Tensor]:
        model: Any = self.model
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [*model.parameters(), *model.buffers(), *gradients]

    @contextmanager
    def _estimating(self, what: str) -> Iterator[None]:
        """Without data; what an architecture raises there says nothing of a run.

        Raises:
            NotEstimatedError: says why.
        """
        try:
            with self._quiet(), self._fake:
                yield
        except Exception as error:  # whatever an architecture raises
            raise NotEstimatedError(
                f"{what} with {type(self.model).__name__} cannot be estimated without data: {first_line(error)}"
            ) from error

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        log = logging.getLogger(FAKE_TENSOR_LOG)  # prints a traceback for what is raised anyway
        with warnings.catch_warnings(), _unpacked(), _replaced(log, "disabled", True):
            warnings.simplefilter("ignore")
            yield


class _FakeLanguageModel(LanguageModel):
    """Chunks as on the device the estimate is for."""

    def __init__(self, model: PreTrainedModel, kind: str, autocast: bool):
        self.kind = kind
        super().__init__(model, autocast=autocast)

    @property
    def chunk(self) -> int:
        return chunk_tokens(self.kind, self.vocabulary)

    def _probe(self) -> None:
        """There are no numbers to compare."""


def _unpacked() -> AbstractContextManager[None]:
    """transformers looks into the positions for sequences packed into one row, and without data takes them for packed,
    which would cost a mask of [tokens × tokens]. Rows are never packed here."""
    return _replaced(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


@contextmanager
def _replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """`owner.name` is `value` while the block lasts; one that is not there stays away."""
    found = getattr(owner, name, None)
    if found is not None:
        setattr(owner, name, value)
    try:
        yield
    finally:
        if found is not None:
            setattr(owner, name, found)


def _signal(objective: Objective, tokens: int, vocabulary: int, width: int) -> TokenSignal:
    """Of a teacher with the student's vocabulary."""
    k = objective.signal.k
    if k:
        return top_k_signal(torch.empty(tokens, k, dtype=torch.int32), torch.empty(tokens, k), torch.empty(tokens))
    matrix = torch.empty(vocabulary, width)
    return full_signal(torch.empty(tokens, width), lambda states: states @ matrix.T)


def _tokens(work: Work) -> Tokens:
    shape, time = (work.rows, work.prompt + work.stop - 1), work.stop - work.start
    return Tokens(
        input_ids=torch.empty(shape, dtype=torch.long),
        attention_mask=None,
        position_ids=None,
        rows=torch.empty(work.scored, dtype=torch.long),
        columns=torch.empty(work.scored, dtype=torch.long),
        targets=torch.empty(work.scored, dtype=torch.long),
        mask=torch.empty(work.rows, time, dtype=torch.bool),
        positions=torch.empty(work.rows, time, dtype=torch.long),
        lengths=torch.empty(work.rows, dtype=torch.long),
    )


def _lengthen(cache: DynamicCache, length: int) -> None:
    """Keys and values of `length` tokens, or of as many as a layer's window keeps."""
    for layer in cache.layers:
        if not isinstance(getattr(layer, "keys", None), Tensor):  # a recurrent layer's state is as large as ever
            continue
        window = getattr(layer, "sliding_window", None)
        kept = length if window is None else min(length, window - 1)
        for name in ("keys", "values"):
            held = getattr(layer, name)
            setattr(layer, name, held.new_empty((*held.shape[:-2], kept, held.shape[-1])))
        if hasattr(layer, "cumulative_length"):
            setattr(layer, "cumulative_length", length)  # noqa: B010  only some kinds of layers have it


def _held(layer: object) -> list[Tensor]:
    """What a layer of a cache keeps: keys and values, or the states of a recurrent one."""
    parts = (part for value in vars(layer).values() for part in (value if isinstance(value, list | tuple) else [value]))
    return [part for part in parts if isinstance(part, Tensor)]
