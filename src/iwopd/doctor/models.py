"""Student and teacher without data, and the numbers that count of them."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from iwopd.assembly.models import adapters
from iwopd.config import Config
from iwopd.config.models import ScorerConfig
from iwopd.doctor.compute import Shape
from iwopd.doctor.fake_model import FakeModel
from iwopd.doctor.memory import BYTES, cache_per_token
from iwopd.doctor.sharding import Parts
from iwopd.models.rope import context_limit

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


@dataclass(frozen=True)
class Model:
    """One model of a run.

    Attributes:
        fake: it, without data.
        shape: what counts of it.
        each: bytes of a weight.
        trained_each: bytes of a trained weight: adapters are float32 whatever the model is.
        computes_in: bytes of a number in its products.
        parts: what of it is gathered at one time, where several processes share it.
    """

    fake: FakeModel
    shape: Shape
    each: int
    trained_each: int
    computes_in: int
    parts: Parts


@dataclass(frozen=True)
class Scorer:
    """A model that only scores: a teacher, or ExOPD's base.

    Attributes:
        key: its section of the config.
        section: a TeacherConfig or BaseConfig.
    """

    key: str
    section: ScorerConfig
    model: Model


def student_model(config: Config, model_config: PreTrainedConfig, kind: str, *, gather: str | None = None) -> Model:
    """The student as it is trained on a device of that kind.

    Args:
        gather: dtype in which several processes gather its weights; None for their own.
    """
    section = config.student
    fake = FakeModel(
        model_config,
        dtype=gather or section.dtype,
        attention=section.attention,
        device=kind,
        autocast=config.optim.autocast,
        checkpointing=section.gradient_checkpointing,
        trust_remote_code=section.trust_remote_code,
        adapt=partial(adapters, config) if section.lora.rank else None,
    )
    computed = "bfloat16" if config.optim.autocast else section.dtype
    return _model("student", fake, model_config, section.dtype, computed, trained=True)


def teacher_model(name: str, section: ScorerConfig, model_config: PreTrainedConfig, kind: str) -> Model:
    """A model that only scores, of the config section `name`."""
    fake = FakeModel(
        model_config,
        dtype=section.dtype,
        attention=section.attention,
        device=kind,
        trust_remote_code=section.trust_remote_code,
    )
    return _model(name, fake, model_config, section.dtype, section.dtype, trained=False)


def _model(name: str, fake: FakeModel, config: PreTrainedConfig, dtype: str, computed: str, *, trained: bool) -> Model:
    learnt = fake.trained() if trained else []
    shape = shape_of(name, fake.model, config, BYTES[computed], sum(parameter.numel() for parameter in learnt))
    trained_each = learnt[0].itemsize if learnt and shape.trained < shape.parameters else BYTES[dtype]
    return Model(fake, shape, BYTES[dtype], trained_each, BYTES[computed], Parts.of(fake.lm))


def shape_of(name: str, model: PreTrainedModel, config: PreTrainedConfig, each: int, trained: int) -> Shape:
    """Parameters are counted exactly; the rest is read from the config, under the names that architectures use.

    Args:
        each: bytes of a cached number.
    """
    heads, width = _of(config, "num_attention_heads"), _of(config, "hidden_size")
    layers, kv_heads = _of(config, "num_hidden_layers"), _of(config, "num_key_value_heads", heads)
    head_dim = _of(config, "head_dim", width // heads)
    embeddings: Any = model.get_output_embeddings(), model.get_input_embeddings()
    head, embedding = (each.weight for each in embeddings)
    experts = next((found for key in EXPERTS if (found := getattr(config, key, None))), 0)
    chosen = next((found for key in CHOSEN if (found := getattr(config, key, None))), experts)
    return Shape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=trained,
        # transformers holds the experts of a layer in one tensor, [experts, …].
        experts=sum(p.numel() for p in model.parameters() if experts and p.dim() == 3 and p.shape[0] == experts),
        expert_share=chosen / experts if experts else 1.0,
        embedding=embedding.numel(),
        head=head.numel(),
        tied=head is embedding,
        layers=layers,
        attention=heads * head_dim,
        grouped=kv_heads < heads,
        cache=cache_per_token(layers, kv_heads, head_dim, each),
        vocabulary=head.shape[0],
        width=width,
        context=context_limit(config),
    )


def _of(config: PreTrainedConfig, name: str, default: int = 1) -> int:
    """A number of the config; `default` where there is none, or one for every layer (Gemma 4 refuses to say)."""
    try:
        found = getattr(config, name, None)
    except Exception:  # transformers' own, for what varies between layers
        return default
    return found if isinstance(found, int) and found > 0 else default
