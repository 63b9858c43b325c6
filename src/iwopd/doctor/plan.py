"""What each stage of a run keeps in memory, and where: from the config and models without data."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from iwopd import build
from iwopd.config import Config, HfRolloutConfig, HfScoringConfig, VllmRolloutConfig, VllmScoringConfig
from iwopd.doctor import memory
from iwopd.doctor.hollow import Pass, Work
from iwopd.doctor.machine import Machine
from iwopd.doctor.memory import CUDA_CONTEXT, Place, Term
from iwopd.doctor.models import Model
from iwopd.teachers.hf import BATCH_TOKENS
from iwopd.vllm.in_process import cache_room

PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)  # points of the training at which windows that grow are looked at
VLLM_LIBRARIES = 0.6 * memory.GIB  # of host memory, when vLLM is imported


@dataclass(frozen=True)
class Lengths:
    """Tokens.

    Attributes:
        prompt: the longest.
        mean_prompt: on average.
        response: the longest while training.
        evaluated: the longest response of an evaluation.
    """

    prompt: int
    mean_prompt: float
    response: int
    evaluated: int


def lengths(config: Config, prompts: list[int] | None = None) -> Lengths:
    """From the config, and the prompts' own lengths where they are known."""
    rollout, most = config.rollout, config.data.max_prompt_tokens
    horizon = rollout.horizon_end or rollout.horizon
    response = rollout.max_tokens
    if horizon is not None and horizon > 1:
        response = min(response, int(horizon))
    evaluated = config.eval.max_tokens or rollout.max_tokens
    if not prompts:
        return Lengths(most, most, response, evaluated)
    return Lengths(max(prompts), sum(prompts) / len(prompts), response, evaluated)


Window = Callable[[int, float], tuple[int, int]]  # of a response's length and the progress


@dataclass(frozen=True)
class Plan:
    """A run on a machine.

    Attributes:
        window: the weighting's.
        needs_batch: the student scores the whole batch before the update.
        program: bytes of host memory that Python and its libraries take.
    """

    config: Config
    machine: Machine
    student: Model
    teacher: Model
    lengths: Lengths
    window: Window
    needs_batch: bool
    program: float = 0.0

    @property
    def sequences(self) -> int:
        """Rollouts of one optimiser step."""
        return self.config.data.batch_size * self.config.rollout.n // self.config.optim.updates_per_batch

    @property
    def scores_itself(self) -> bool:
        """The student's log-probs are made before the update, too."""
        trainer = self.needs_batch and self.config.scoring.student_logprobs == "trainer"
        return trainer or self.config.optim.updates_per_batch > 1

    def micro_batch(self, limit: int) -> Work:
        """The largest batch of longest sequences that a limit of tokens allows."""
        prompt = self.lengths.prompt
        start, stop = max((self.window(self.lengths.response, at) for at in PROGRESS), key=lambda window: window[1])
        rows = max(1, limit // (prompt + stop))
        return Work(min(rows, max(1, self.sequences)), prompt, start, stop)

    def places(self) -> list[Place]:
        """Every stage, on the student's device and wherever else it needs memory."""
        found = [self._place("rollout", self._rollout()), self._place("score", self._score())]
        found.append(self._place("update", self._update()))
        return found + self._elsewhere()

    # ------------------------------------------------------------------------------------------ what is always there

    def _place(self, stage: str, terms: list[Term]) -> Place:
        if self.machine.kind == "cuda":
            base = Term("CUDA context and libraries", CUDA_CONTEXT, "assumed")
        else:
            base = Term("Python and libraries", self.program, "of this process")
        return Place(stage, self.machine.where, self.machine.memory, [base, *self._resident(stage), *terms])

    def _resident(self, stage: str) -> list[Term]:
        student, config, cuda = self.student, self.config, self.machine.kind == "cuda"
        terms = self._student_weights()
        terms.append(memory.adam(student.shape.trained, student.trained_each))
        scoring = config.scoring
        offloaded = config.teacher.offload and cuda
        if isinstance(scoring, HfScoringConfig) and not (offloaded and stage != "score"):
            terms.append(memory.weights(self.teacher.shape.parameters, self.teacher.each, "teacher's weights"))
        if isinstance(scoring, VllmScoringConfig) and not (offloaded and stage != "score" and not self._overlaps):
            terms += self._engine(scoring.engine, self.teacher, "teacher's vLLM engine")
        rollout = config.rollout
        if isinstance(rollout, VllmRolloutConfig) and not (rollout.sleep and cuda and stage != "rollout"):
            terms += self._engine(rollout.engine, self.student, "student's vLLM engine")
        return terms

    def _student_weights(self) -> list[Term]:
        shape, student = self.student.shape, self.student
        if shape.trained == shape.parameters:
            return [memory.weights(shape.parameters, student.each, "student's weights")]
        frozen = memory.weights(shape.parameters - shape.trained, student.each, "student's weights")
        return [frozen, memory.weights(shape.trained, student.trained_each, "adapters' weights")]

    @property
    def _overlaps(self) -> bool:
        return isinstance(self.config.scoring, VllmScoringConfig) and self.config.scoring.overlap

    def _engine(self, engine: Any, model: Model, what: str) -> list[Term]:
        """What vLLM takes of the first GPU, or of the host."""
        shape, share = model.shape, engine.tensor_parallel
        each = memory.BYTES[self._engine_dtype(model)]
        held = memory.weights(shape.parameters // share, each, f"{what}: weights")
        if self.machine.kind == "cuda" and engine.kv_cache_gib is None:
            return [replace(memory.vllm_share(engine.gpu_memory, self.machine.memory), what=what)]
        token = shape.cache * each // model.computes_in
        room = cache_room(token, self.context, engine.sequences)
        if engine.kv_cache_gib is not None:
            room = engine.kv_cache_gib * memory.GIB
        terms = [held, Term(f"{what}: keys and values", room, f"of {memory.size(token)} per token")]
        if self.machine.kind == "cpu":
            terms.append(Term("vLLM's libraries", VLLM_LIBRARIES, "assumed"))
        return terms

    def rooms(self) -> Iterator[tuple[str, float, float]]:
        """Of each vLLM engine on a GPU: its setting, bytes for keys and values, and bytes of one longest sequence."""
        if self.machine.kind != "cuda":
            return
        groups = (("rollout", self.config.rollout, self.student), ("scoring", self.config.scoring, self.teacher))
        for key, group, model in groups:
            if isinstance(group, (VllmRolloutConfig, VllmScoringConfig)):
                engine, each = group.engine, memory.BYTES[self._engine_dtype(model)]
                held = model.shape.parameters * each / engine.tensor_parallel
                room = engine.gpu_memory * self.machine.memory - held
                if engine.kv_cache_gib is not None:
                    room = engine.kv_cache_gib * memory.GIB
                token = model.shape.cache * each / model.computes_in / engine.tensor_parallel
                yield f"{key}.engine", room, token * self.context

    def _engine_dtype(self, model: Model) -> str:
        if model is self.student and isinstance(self.config.rollout, VllmRolloutConfig):
            return build.engine_dtype(self.config, self.config.rollout.dtype)
        return self.config.teacher.dtype

    @property
    def context(self) -> int:
        """Longest sequence, tokens."""
        return self.lengths.prompt + max(self.lengths.response, self.lengths.evaluated)

    # ------------------------------------------------------------------------------------------ the stages

    def _rollout(self) -> list[Term]:
        rollout = self.config.rollout
        terms: list[Term] = []
        if self._overlaps:
            terms += self._prompt_logprobs()
        if not isinstance(rollout, HfRolloutConfig):
            return terms
        rows = min(rollout.batch_size, self.config.data.batch_size * rollout.n)
        response = max(self.lengths.response, self.lengths.evaluated)
        found = self.student.hollow.rollout(rows, self.lengths.prompt, response, build.sampling(rollout))
        held = memory.kv_cache(rows, self.lengths.prompt + response - 1, 0)
        how = held.how.rpartition(" × ")[0] + f", {self.student.shape.layers} layers"
        terms.append(Term("keys and values", found.kept, how))
        terms.append(Term("logits, attention", found.peak - found.kept, "at the longest, or while prompts are read"))
        return terms

    def _score(self) -> list[Term]:
        scoring, terms = self.config.scoring, list[Term]()
        if isinstance(scoring, HfScoringConfig):
            limit = scoring.batch_tokens or BATCH_TOKENS[self.machine.kind]
            work = self.micro_batch(limit)
            terms.append(_working(self.teacher.hollow.score(work), work, "teacher's pass"))
        elif isinstance(scoring, VllmScoringConfig):
            terms += self._prompt_logprobs()
        if self.scores_itself:
            work = self.micro_batch(self.config.optim.micro_batch_tokens)
            own = _working(self.student.hollow.score(work), work, "student's pass")
            terms = [max([own, *terms], key=lambda term: term.bytes)]  # one after the other
        return terms

    def _prompt_logprobs(self) -> list[Term]:
        scoring = self.config.scoring
        assert isinstance(scoring, VllmScoringConfig)
        return [memory.prompt_logprobs(scoring.engine.batch_tokens, self.teacher.shape.vocabulary)]

    def _update(self) -> list[Term]:
        """The larger of the first micro-batch, which has no gradients beside it yet, and the largest after it."""
        work = self.micro_batch(self.config.optim.micro_batch_tokens)
        whole = memory.gradients(self.student.shape.trained, self.student.trained_each)
        rest = min(work.rows, self.sequences - work.rows)
        candidates = [[whole]]  # the optimiser's step: all gradients, and no activations
        if rest > 0:
            candidates.append([whole, *self._micro_batch_terms(replace(work, rows=rest), first=False)])
        if rest < work.rows:
            candidates.append(self._micro_batch_terms(work, first=True))
        return max(candidates, key=lambda terms: sum(term.bytes for term in terms))

    def _micro_batch_terms(self, work: Work, *, first: bool) -> list[Term]:
        width = self.teacher.shape.width if self.config.loss.kind == "reverse_kl" else None
        found = self.student.hollow.update(work, first=first, teacher_width=width)
        if not found.gradients:
            return _activations(found, work, self.student)
        grown = Term("gradients", found.gradients, "those that backward has made by then")
        return [grown, *_activations(replace(found, peak=found.peak - found.gradients), work, self.student)]

    def _elsewhere(self) -> list[Place]:
        """Host memory beside GPUs, and further GPUs of engines that are split over several."""
        config, machine, places = self.config, self.machine, list[Place]()
        if machine.kind != "cuda":
            return places
        host = Place(
            "all stages", "host memory", machine.host, [Term("Python and libraries", self.program, "of this process")]
        )
        if config.teacher.offload and not _served(config.scoring):
            host.terms.append(memory.weights(self.teacher.shape.parameters, self.teacher.each, "teacher, offloaded"))
        if isinstance(config.rollout, VllmRolloutConfig) and config.rollout.sleep:
            each = memory.BYTES[self._engine_dtype(self.student)]
            host.terms.append(memory.weights(self.student.shape.parameters, each, "student's engine, asleep"))
        places.append(host)
        for stage, group, model in (("rollout", config.rollout, self.student), ("score", config.scoring, self.teacher)):
            if isinstance(group, (VllmRolloutConfig, VllmScoringConfig)) and group.engine.tensor_parallel > 1:
                context = Term("CUDA context and libraries", CUDA_CONTEXT, "assumed")
                where = f"GPUs 1 to {group.engine.tensor_parallel - 1}"
                terms = [context, *self._engine(group.engine, model, "vLLM engine")]
                places.append(Place(stage, where, machine.memory, terms))
        return places


def _served(scoring: Any) -> bool:
    return not isinstance(scoring, (HfScoringConfig, VllmScoringConfig))


def _working(found: Pass, work: Work, what: str) -> Term:
    how = f"{work.rows} × {work.prompt + work.stop - 1:,} tokens, {memory.size(found.peak / work.read)} per token"
    return Term(what, found.peak, how)


def _activations(found: Pass, work: Work, student: Model) -> list[Term]:
    layers, length = student.shape.layers, work.prompt + work.stop - 1
    per_token = found.kept / work.read / layers
    how = f"{work.rows} × {length:,} tokens × {layers} layers × {memory.size(per_token)}"
    kept = Term("activations", found.kept, how + (", checkpointed" if student.hollow.checkpointing else ""))
    rest = found.peak - found.kept
    if rest < 0:  # the peak comes late in backward, when most of them are freed
        return [Term("activations still held", found.peak, how)]
    chunk = max(student.hollow.lm.chunk, student.shape.width)
    what = (
        f"head in chunks of {min(chunk, work.scored):,} × {student.shape.vocabulary:,} logits, its gradient, backward"
    )
    return [kept, Term("log-probs and backward", rest, what)]
