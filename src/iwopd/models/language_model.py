"""A causal language model of transformers, split into decoder and head so that logits exist only in chunks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from iwopd.errors import IwopdError, ModelError, first_line, loading_error
from iwopd.models.batch import Prompts, Tokens
from iwopd.models.logits import candidates
from iwopd.numerics import chunked_token_logprobs, linear_token_logprobs

CACHES = ("past_key_values", "cache_params")  # what decoders call the cache that sampling brings

# Bytes of float32 logits that may exist at one time: small on a CPU, where cache decides; larger where kernels do.
LOGITS_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}


def chunk_tokens(device: str, vocabulary: int) -> int:
    """Tokens whose logits may exist at one time on a device of that type."""
    return max(LOGITS_BYTES.get(device, LOGITS_BYTES["cuda"]) // (4 * vocabulary), 8)


def load_pretrained(
    path: str | Path,
    *,
    key: str,
    dtype: str,
    device: torch.device,
    attention: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on `device`; on "meta", its shapes alone.

    Args:
        key: the setting the path came from, for messages.
        attention: transformers' name of an implementation; auto for the best that the architecture has.

    Raises:
        ModelError: the model cannot be loaded; says why.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        model, report = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            path,
            dtype=getattr(torch, dtype),
            revision=revision or "main",
            attn_implementation=None if attention == "auto" else attention,
            device_map="meta" if device.type == "meta" else None,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except Exception as error:  # transformers and safetensors raise a dozen types here
        problem = "cannot be loaded as a causal language model"
        raise loading_error(key, str(path), problem, error, "check it") from error
    _fix_generation_config(model, f"{key}={path}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{key}={path}: {len(missing)} weights are missing from the files, first {missing[0]}; "
            "they would start at random: save the model again, or name another"
        )
    keep_attention_cap(model, attention)
    return model.to(device)


def keep_attention_cap(model: PreTrainedModel, attention: str) -> None:
    """With `attention` auto, eager attention where the architecture caps attention's logits (Gemma 2): transformers'
    sdpa leaves the cap out, and says nothing."""
    if attention == "auto" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def _fix_generation_config(model: PreTrainedModel, said: str) -> None:
    """Published models may hold settings that transformers reads but refuses to save, hours later."""
    generation = model.generation_config
    try:
        generation.validate(strict=True)
    except ValueError:
        generation.do_sample = True  # what temperature and top_p without it were meant for
        try:
            generation.validate(strict=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{said}: its generation_config.json cannot be saved again: {reason}; fix it") from error


class LanguageModel(nn.Module):
    """Hidden states, head and log-probs of one model.

    `forward` is the only way to what is differentiable: the decoder, the head, and what is made of both run within one
    call of the module, which whoever shards its weights can gather around. (Sampling has no gradient, and calls decoder
    and head token by token.)

    Args:
        model: any causal language model of transformers.
        autocast: run forward in bfloat16, whatever the weights' dtype.
        name: the setting it came from, for messages.
    """

    def __init__(self, model: PreTrainedModel, *, autocast: bool = False, name: str = "model"):
        super().__init__()
        self.model = model
        self.autocast_enabled = autocast
        self.name = name
        self.compiled = False  # see `iwopd.models.compiled`
        self.shares_prompts: bool | None = None  # see `iwopd.models.shared_prompts`; None before it is found out
        self.logits = candidates(self.config)[0]
        if self.device.type != "meta":
            self._probe()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def decoder(self) -> nn.Module:
        """What makes hidden states: the model without its head."""
        model: Any = self.model
        places = (model.base_model, model.get_decoder(), getattr(model, "model", None))  # the last is Llama 4's
        return next((place for place in places if place is not None and place is not model), model)

    @property
    def config(self) -> PreTrainedConfig:
        """Of the text model: a multimodal one keeps it in a part of its own."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def vocabulary(self) -> int:
        """Rows of the head; padding of the vocabulary included."""
        return self.output_embeddings.weight.shape[0]

    @property
    def output_embeddings(self) -> nn.Linear:
        """The head's matrix as a module; the one of the input where the two are tied."""
        return self.model.get_output_embeddings()  # pyright: ignore[reportReturnType]  every causal model has one

    @property
    def chunk(self) -> int:
        """Tokens whose logits may exist at one time."""
        return chunk_tokens(self.device.type, self.vocabulary)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of every forward pass, sampling included, so that sampler and trainer round alike."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast_enabled)

    def forward(self, tokens: Tokens, readout: "Readout") -> Any:  # noqa: ANN401  the readout's; nn.Module's call has no type of its own
        """What `readout` makes of the last hidden states that predict the windows' tokens.

        Args:
            readout: is called with this model, the states [tokens, hidden] and the tokens' ids [tokens]; returns
                tensors, alone or in a tuple.

        Raises:
            ModelError: gradients are wanted and the architecture makes none in evaluation mode.
        """
        with self.autocast():
            return readout(self, self._states(tokens), tokens.targets)

    def token_logprobs(self, tokens: Tokens) -> Tensor:
        """[tokens]: log-probs of the windows' tokens, nats, float32, differentiable unless under no_grad."""
        return self(tokens, LanguageModel.logprobs_of)

    def _states(self, tokens: Tokens) -> Tensor:
        if tokens.prompts is None:
            whole = self._whole_states(tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        else:
            whole = self._states_after(tokens.prompts, tokens)
        states = whole[tokens.rows, tokens.columns]
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.decoder.parameters())
        if trained and not states.requires_grad:
            raise ModelError(
                f"{self.name}: {type(self.model).__name__} computes sequences of {tokens.input_ids.shape[1]} tokens "
                "without gradients in evaluation mode, so it would not learn; use a smaller rollout.max_tokens"
            )
        return states

    def _whole_states(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """[batch, columns, hidden]"""
        output = self.decoder(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def _states_after(self, prompts: Prompts, tokens: Tokens) -> Tensor:
        """[batch, 1 + columns, hidden]: each row's prompt's last state, and those of its response."""
        cache, rows = DynamicCache(), prompts.of_row  # without a config: of all keys, also where attention slides

        def states(part: Prompts | Tokens) -> Tensor:
            return self.decoder(
                input_ids=part.input_ids,
                attention_mask=part.attention_mask,
                position_ids=part.position_ids,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state

        last = states(prompts)[:, -1:]
        for layer in cache.layers:
            layer.reorder_cache(rows)  # pyright: ignore[reportArgumentType]  gradients flow through it
        return torch.cat([last[rows], states(tokens)], dim=1)

    def head(self, states: Tensor) -> Tensor:
        """[tokens, hidden] to logits [tokens, vocabulary], scaled and capped where the architecture does so.

        Under this model's own autocast, whoever calls: a teacher's head is not rounded as its student's is.
        """
        with self.autocast():
            return self.logits(self.output_embeddings(states))

    def logprobs_of(self, states: Tensor, targets: Tensor) -> Tensor:
        """A readout: [tokens] log-probs from hidden states, nats, by the cheapest way the head allows."""
        if not self._plain_head:
            return chunked_token_logprobs(states, targets, self.head, self.chunk)
        dtype, weight = torch.bfloat16 if self.autocast_enabled else None, self.output_embeddings.weight
        # A chunk of as many tokens as the head is wide is no larger than the head's gradient, to which each chunk adds.
        trained = torch.is_grad_enabled() and weight.requires_grad
        chunk = max(self.chunk, weight.shape[1]) if trained else self.chunk
        return linear_token_logprobs(states, weight, targets, chunk, dtype)

    @property
    def _plain_head(self) -> bool:
        """A matrix and nothing else: no bias, no adapter, no scale, no cap."""
        plain = type(self.output_embeddings) is nn.Linear and self.output_embeddings.bias is None
        return plain and self.logits.plain

    @torch.no_grad()
    def _probe(self) -> None:
        """Decoder plus head must be what the architecture's own forward computes; finds out how it makes logits.

        Raises:
            ModelError: they are not, or the architecture cannot be run as it is here.
        """
        training = self.model.training
        self.model.eval()
        ids = torch.arange(4, device=self.device)[None] % self.vocabulary
        try:
            whole = self.model(input_ids=ids, use_cache=False).logits.float()
            made = self.output_embeddings(self._whole_states(ids)).float()
        except (IwopdError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever an architecture raises
            raise ModelError(
                f"{self.name}: {type(self.model).__name__} cannot be run as other causal language models are: "
                f"{first_line(error)}; name another model"
            ) from error
        finally:
            self.model.train(training)
        if not whole.isfinite().all():
            return
        same = (each for each in candidates(self.config) if _close(whole, each(made)))
        found = next(same, None)
        if found is None:
            raise ModelError(
                f"{self.name}: {type(self.model).__name__} makes logits in a way that is not known here (they are not "
                "its head's matrix, scaled or capped); name another model, and please report the architecture"
            )
        self.logits = found


Readout = Callable[[LanguageModel, Tensor, Tensor], Any]


def _close(whole: Tensor, made: Tensor) -> bool:
    return whole.shape == made.shape and torch.allclose(whole, made, rtol=1e-2, atol=1e-2)
