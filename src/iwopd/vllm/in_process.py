"""A vLLM engine inside this process: started quietly, stepped by us, and closed without a trace."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from iwopd._compat import leave_transformers_uncompiled
from iwopd.config import VllmEngineConfig
from iwopd.errors import EngineError, first_line
from iwopd.parallel.ranks import groups_kept
from iwopd.vllm.quiet import LogFile, as_found, random_state, standard_error_to

if TYPE_CHECKING:
    from vllm import LLM

REPORT_EVERY = 0.5  # seconds
GIB, BLOCK = 2**30, 128  # bytes; tokens that vLLM caches together on a CPU
_open: "set[InProcess]" = set()
_closed: "list[InProcess]" = []


@dataclass(frozen=True)
class Settings:
    """How an engine starts.

    Attributes:
        folder: the model, as transformers would load it.
        context: longest prompt and response together, tokens.
        whole_prompts: never compute a prompt in two parts.
        pooling: give hidden states instead of answers and log-probs.
    """

    folder: str
    context: int
    dtype: str
    engine: VllmEngineConfig
    revision: str | None = None
    trust_remote_code: bool = False
    sleep: bool = False
    whole_prompts: bool = False
    pooling: bool = False
    more: dict[str, Any] = field(default_factory=dict[str, Any])


class InProcess:
    """One engine.

    Args:
        name: of the setting it comes from, for messages.
        log_file: where vLLM's log and what its libraries print goes.
        options: further arguments of `vllm.LLM` that the caller needs to be as they are.

    vLLM reads some environment variables as it is imported: `iwopd.machine.runtime` sets them.

    Raises:
        EngineError: the engine does not start; says why, and where its log is.
    """

    def __init__(self, name: str, settings: Settings, log_file: Path, **options: Any):  # noqa: ANN401  vllm.LLM's
        self.name = name
        self.asleep = False
        self.settings = settings
        self.log = LogFile(log_file)
        self.on_cpu = not torch.cuda.is_available()
        try:
            with as_found(), self.log, standard_error_to(log_file):
                self.llm = self._start(options)
        except Exception as error:  # vLLM raises whatever its parts raise
            raise EngineError(
                f"{name}: vLLM does not start with {settings.folder}: {first_line(error)}; its log is {log_file}, "
                f"and {name.partition('=')[0]}=hf needs no vLLM"
            ) from error
        self.engine: Any = self.llm.llm_engine
        _open.add(self)

    def _start(self, options: dict[str, Any]) -> "LLM":
        given = self.settings
        if self.on_cpu:
            torch.compiler.set_stance("force_eager")  # else the first request with log-probs waits for a C++ compiler
        import vllm  # seconds, and only with engines is it needed at all

        engine = vllm.LLM  # loads the rest
        self.params, self.pooling_params = vllm.SamplingParams, vllm.PoolingParams

        leave_transformers_uncompiled()

        kv_cache = None if given.engine.kv_cache_gib is None else int(given.engine.kv_cache_gib * GIB)
        if kv_cache is None and self.on_cpu:
            kv_cache = cache_bytes(given)
        arguments: dict[str, Any] = {
            "model": given.folder,
            "tokenizer_revision": given.revision,
            "revision": given.revision,
            "trust_remote_code": given.trust_remote_code,
            "dtype": given.dtype,
            "max_model_len": given.context,
            "max_num_seqs": given.engine.sequences,
            "max_num_batched_tokens": max(given.engine.batch_tokens, given.engine.sequences),
            "tensor_parallel_size": given.engine.tensor_parallel,
            "enforce_eager": given.engine.eager or self.on_cpu,
            "enable_sleep_mode": given.sleep and not self.on_cpu,
            "kv_cache_memory_bytes": kv_cache,
            "generation_config": "vllm",  # sampling is what the config says, never what a model folder suggests
            "disable_log_stats": True,
            "skip_tokenizer_init": True,  # prompts and responses are token ids
            "seed": 0,  # requests bring their own seeds
        }
        if not self.on_cpu:
            arguments["gpu_memory_utilization"] = given.engine.gpu_memory
        if given.whole_prompts:
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(arguments["max_num_batched_tokens"], given.context)
        if given.pooling:
            # The states after the model's final norm, as they are; a pooling engine wants its tokenizer.
            pooler = vllm.config.PoolerConfig(  # pyright: ignore[reportAttributeAccessIssue]  loaded by then
                task="token_embed", use_activation=False
            )
            arguments |= {
                "runner": "pooling",
                "convert": "embed",
                "pooler_config": pooler,
                "skip_tokenizer_init": False,
            }
        return engine(**(arguments | options | given.more))

    def run(
        self,
        prompts: Sequence[list[int]],
        params: Sequence[Any],
        finished: Callable[[int, Any], None],
        under_way: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """Compute all requests; `finished` is called with each one's place and output as soon as it is there.

        Args:
            prompts: token ids.
            params: a `vllm.SamplingParams` for each.
            under_way: called now and then with the number of tokens of the unfinished ones so far.
        """
        with self.log, random_state():
            names = self.llm.enqueue([{"prompt_token_ids": ids} for ids in prompts], list(params), use_tqdm=False)
            # Queued requests are called NUMBER-RANDOM, and their outputs NUMBER.
            places = {name.partition("-")[0]: place for place, name in enumerate(names)}
            reported = time.monotonic()
            try:
                while places:
                    for output in self.engine.step():
                        if output.finished:
                            finished(places.pop(output.request_id), output)
                    if time.monotonic() - reported > REPORT_EVERY:
                        reported = time.monotonic()
                        under_way(self._tokens())
            finally:  # interrupted: nothing of it may run on with the next requests
                self.engine.abort_request([names[place] for place in places.values()], internal=True)

    def hidden_states(self, prompts: Sequence[list[int]]) -> list[torch.Tensor]:
        """The last hidden states [tokens, hidden] of each prompt, of an engine that was started for pooling."""
        self.wake()
        with self.log, random_state():
            found = self.llm.encode(
                [{"prompt_token_ids": ids} for ids in prompts],
                pooling_params=self.pooling_params(use_activation=False),
                pooling_task="token_embed",
                use_tqdm=False,
            )
        self.sleep()
        return [each.outputs.data.clone() for each in found]  # made in inference mode, which autograd does not take

    def _tokens(self) -> int:
        """Written for requests that are not finished; vLLM itself reports no more of them."""
        states = getattr(self.engine.output_processor, "request_states", {})
        return sum(state.detokenizer.num_output_tokens() for state in states.values() if state.detokenizer is not None)

    def call(self, method: str, *arguments: object) -> None:
        """Call a method of the worker extension on every worker."""
        with self.log:
            self.llm.collective_rpc(method, args=arguments)

    def reset_cache(self) -> None:
        """Forget cached prefixes.

        Raises:
            EngineError: vLLM refuses, so what it serves may be of older weights.
        """
        with self.log:
            if not self.llm.reset_prefix_cache():
                raise EngineError(f"{self.name}: vLLM did not reset its prefix cache; its log is {self.log.file}")

    def sleep(self) -> None:
        """Hand the GPU's memory back: weights wait in host memory, cached keys and values are dropped."""
        if self.settings.sleep and not self.on_cpu and not self.asleep:
            with self.log:
                self.llm.sleep(level=1)
            self.asleep = True

    def wake(self) -> None:
        """Take the memory again."""
        if self.asleep:
            with self.log:
                self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """Shut the engine down.

        vLLM's shutdown tears down what all engines of a process share, so while others run it waits for the last.
        """
        if self not in _open:
            return
        _open.discard(self)
        _closed.append(self)
        if not _open:
            while _closed:
                _closed.pop()._shut_down()

    def _shut_down(self) -> None:
        with self.log, standard_error_to(self.log.file), groups_kept(), contextlib.suppress(Exception):
            self.engine.engine_core.shutdown()
        del self.engine, self.llm


def cache_bytes(settings: Settings) -> int:
    """Room for the keys and values of all sequences at their longest, at most 1 GiB, but always for two. vLLM fills
    what it is given with zeros, so on a CPU more than that would only cost memory."""
    found = AutoConfig.from_pretrained(
        settings.folder, revision=settings.revision or "main", trust_remote_code=settings.trust_remote_code
    )
    config = found.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * size * getattr(torch, settings.dtype).itemsize
    return cache_room(token, settings.context, settings.engine.sequences)


def cache_room(token: int, context: int, sequences: int) -> int:
    """`cache_bytes` from the bytes of one token's keys and values."""
    sequence = token * BLOCK * (context // BLOCK + 1)
    return max(2 * sequence, min(sequence * sequences, GIB))
