"""What each stage of a run keeps in memory, and where: from the config and models without data."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from iwopd import assembly
from iwopd.config import (
    HfRolloutConfig,
    HfScoringConfig,
    VllmEngineConfig,
    VllmRolloutConfig,
    VllmScoringConfig,
)
from iwopd.doctor import memory
from iwopd.doctor.fake_model import Work
from iwopd.doctor.findings import NotEstimatedError
from iwopd.doctor.memory import CUDA_CONTEXT, Place, Term
from iwopd.doctor.models import Model, Scorer
from iwopd.doctor.run import PROGRESS, Run
from iwopd.doctor.terms import activations, head_of, weights_of, working
from iwopd.scoring.hf import BATCH_TOKENS
from iwopd.training.objective import Objective
from iwopd.vllm.in_process import cache_room

VLLM_LIBRARIES = 0.6 * memory.GIB  # of host memory, when vLLM is imported


class Plan(Run):
    """A run's stages, and what each keeps in memory."""

    def places(self) -> list[Place]:
        """Every stage, where a process of the run trains."""
        stages = {"rollout": self._rollout, "score": self._score, "update": self._update}
        return [self._place(stage, terms) for stage, terms in stages.items()]

    # ------------------------------------------------------------------------------------------ what is always there

    def _place(self, stage: str, terms_of: Callable[[], list[Term]]) -> Place:
        if self.machine.kind == "cuda":
            base = Term("CUDA context and libraries", CUDA_CONTEXT, "assumed")
        else:
            base = Term("Python and libraries", self.program, "of this process")
        compiled = [memory.compiled_products()] if self._compiles else []
        where, limit = self.machine.where, self.machine.memory
        if self.sharding.ranks > 1 and self.machine.kind == "cuda":
            where = f"each of {self.sharding.ranks} GPUs"
        elif self.sharding.ranks > 1:
            where, limit = f"host memory, a share for each of {self.sharding.local}", limit / self.sharding.local
        place = Place(stage, where, limit, [base, *self._resident(stage), *compiled])
        if self.machine.kind == "cpu" and stage != "rollout":
            place.terms += self.records()
        try:
            place.terms += terms_of()
        except NotEstimatedError as error:
            place.unknown = str(error)
        return place

    def records(self) -> list[Term]:
        """What a batch's records keep in host memory of the teacher's distributions."""
        signal, config = self.config.loss.teacher_signal, self.config
        state = max(scorer.model.shape.width * scorer.model.computes_in for scorer in self.scorers)
        each, rollouts = signal.bytes_per_token(state), config.data.batch_size * config.rollout.n
        start, stop = max((self.window(self.lengths.response, at) for at in PROGRESS), key=lambda own: own[1] - own[0])
        return [memory.records(rollouts * (stop - start), each, signal.kind)] if each else []

    @property
    def _compiles(self) -> bool:
        """On a CPU, products in 16-bit formats are oneDNN's."""
        config = self.config
        dtypes = (config.student.dtype, *(scorer.section.dtype for scorer in self.in_transformers))
        return self.machine.kind == "cpu" and (config.optim.autocast or any("16" in dtype for dtype in dtypes))

    def _resident(self, stage: str) -> list[Term]:
        student, config, cuda = self.student, self.config, self.machine.kind == "cuda"
        scoring: Any = config.scoring
        terms = self._student_weights()
        terms.append(self.sharding.part(memory.adam(student.shape.trained, student.trained_each)))
        beside = [each for each in self.in_transformers if self.device_of(each) is None and not _is_student(each)]
        turns = [weights_of(scorer) for scorer in beside if scorer.section.offload and cuda]
        for scorer in beside:
            if not (scorer.section.offload and cuda):
                terms += self.sharding.scorer(weights_of(scorer), scorer.model.parts, scorer.model.each)
        if turns and stage == "score":
            terms.append(max(turns, key=lambda term: term.bytes))  # one after the other
        terms += [head_of(scorer) for scorer in self.heads_here]
        for scorer in self.in_vllm:
            if not (scorer.section.offload and cuda and stage != "score" and not self._overlaps):
                terms += self.engine(scoring.engine, scorer.model, f"{scorer.key}'s vLLM engine")
        rollout = config.rollout
        if isinstance(rollout, VllmRolloutConfig) and not (rollout.sleep and cuda and stage != "rollout"):
            terms += self.engine(rollout.engine, self.student, "student's vLLM engine")
        return terms

    def _student_weights(self) -> list[Term]:
        shape, student, part = self.student.shape, self.student, self.sharding.part
        if shape.trained == shape.parameters:
            return [part(memory.weights(shape.parameters, student.each, "student's weights"))]
        frozen = memory.weights(shape.parameters - shape.trained, student.each, "student's weights")
        return [part(frozen), part(memory.weights(shape.trained, student.trained_each, "adapters' weights"))]

    def _gathered(self, *, whole: bool = False) -> list[Term]:
        student = self.student
        return self.sharding.gathered(student.parts, student.shape.parameters, student.each, whole=whole)

    @property
    def _overlaps(self) -> bool:
        return isinstance(self.config.scoring, VllmScoringConfig) and self.config.scoring.overlap

    def engine(self, engine: VllmEngineConfig, model: Model, what: str) -> list[Term]:
        """What vLLM takes of the first GPU, or of the host."""
        shape, share = model.shape, engine.tensor_parallel
        each = memory.BYTES[self.engine_dtype(model)]
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
        scoring: Any = self.config.scoring
        groups = [("rollout", self.config.rollout, self.student)]
        groups += [("scoring", scoring, scorer.model) for scorer in self.in_vllm]
        for key, group, model in groups:
            if isinstance(group, (VllmRolloutConfig, VllmScoringConfig)):
                engine, each = group.engine, memory.BYTES[self.engine_dtype(model)]
                held = model.shape.parameters * each / engine.tensor_parallel
                room = engine.gpu_memory * self.machine.memory - held
                if engine.kv_cache_gib is not None:
                    room = engine.kv_cache_gib * memory.GIB
                token = model.shape.cache * each / model.computes_in / engine.tensor_parallel
                yield f"{key}.engine", room, token * self.context

    # ------------------------------------------------------------------------------------------ the stages

    def _rollout(self) -> list[Term]:
        rollout = self.config.rollout
        terms: list[Term] = []
        if self._overlaps:
            terms += self._prompt_logprobs()
        if not isinstance(rollout, HfRolloutConfig):
            return terms
        terms += self._gathered(whole=True)
        rows = min(rollout.batch_size, self.sharding.share(self.config.data.batch_size * rollout.n))
        response = max(self.lengths.response, self.lengths.evaluated)
        found = self.student.fake.rollout(rows, self.lengths.prompt, response, assembly.sampling(rollout))
        held = memory.kv_cache(rows, self.lengths.prompt + response - 1, 0)
        how = held.how.rpartition(" × ")[0] + f", {self.student.shape.layers} layers"
        terms.append(Term("keys and values", found.kept, how))
        terms.append(Term("logits, attention", found.peak - found.kept, "at the longest, or while prompts are read"))
        return terms

    def _score(self) -> list[Term]:
        """The largest of what happens one after the other: passes of teachers and base, and of the student itself."""
        passes = [self.pass_of(scorer) for scorer in self.in_transformers if self.device_of(scorer) is None]
        if self.in_vllm:
            passes += self._prompt_logprobs()
        if self.scores_itself:
            work = self.micro_batch(self.config.optim.micro_batch_tokens)
            passes.append(working(self.student.fake.score(work), work, "student's pass"))
        largest = [max(passes, key=lambda term: term.bytes)] if passes else []
        return largest + (self._gathered() if self.scores_itself else [])

    def pass_of(self, scorer: Scorer) -> Term:
        scoring = self.config.scoring
        own = scoring.batch_tokens if isinstance(scoring, HfScoringConfig) else None
        prompt = None if scorer.key == "base" else self.lengths.taught
        work = self.micro_batch(own or BATCH_TOKENS[self.machine.kind], prompt)
        return working(scorer.model.fake.score(work), work, f"{scorer.key}'s pass")

    def _prompt_logprobs(self) -> list[Term]:
        scoring = self.config.scoring
        if self.heads_here:  # a pooling engine makes no logits
            return []
        assert isinstance(scoring, VllmScoringConfig)
        vocabulary = max(scorer.model.shape.vocabulary for scorer in self.in_vllm)
        return [memory.prompt_logprobs(scoring.engine.batch_tokens, vocabulary)]

    def _update(self) -> list[Term]:
        """The larger of the first micro-batch, which has no gradients beside it yet, and the largest after it."""
        work = self.micro_batch(self.config.optim.micro_batch_tokens)
        student, sharding = self.student, self.sharding
        whole = sharding.part(memory.gradients(student.shape.trained, student.trained_each))
        if sharding.ranks > 1:
            passing = [*self._gathered(), *sharding.reducing(student.parts, student.trained_each)]
            return [whole, *passing, *self._micro_batch_terms(work, first=False)]
        rest = min(work.rows, self.sequences - work.rows)
        candidates = [[whole]]  # the optimiser's step: all gradients, and no activations
        if rest > 0:
            candidates.append([whole, *self._micro_batch_terms(replace(work, rows=rest), first=False)])
        if rest < work.rows:
            candidates.append(self._micro_batch_terms(work, first=True))
        return max(candidates, key=lambda terms: sum(term.bytes for term in terms))

    def _micro_batch_terms(self, work: Work, *, first: bool) -> list[Term]:
        width = self.teacher.shape.width
        found = self.student.fake.update(work, first=first, objective=Objective.of(self.config), teacher_width=width)
        if not found.gradients:
            return activations(found, work, self.student)
        grown = Term("gradients", found.gradients, "those that backward has made by then")
        return [grown, *activations(replace(found, peak=found.peak - found.gradients), work, self.student)]


def _is_student(scorer: Scorer) -> bool:
    """It has no weights but those that are trained."""
    return getattr(scorer.section, "weights", None) == "current"
