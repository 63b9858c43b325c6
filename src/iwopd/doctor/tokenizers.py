"""Do student and teacher read the same text as the same ids, end where the other ends, and see prompts alike?"""

from iwopd import assembly
from iwopd.doctor.findings import Section
from iwopd.doctor.sources import Source
from iwopd.preflight.models import check_tokenizers
from iwopd.types import Tokenizer

EXAMPLES = 5
CONVERSATION = [{"role": "user", "content": "What is 6 times 7?"}]


def compare(student: Source, teacher: Source, section: Section) -> None:
    """Findings on the pair; a problem where training would refuse it."""
    rows(student, teacher, section)
    ours, theirs = student.tokenizer, teacher.tokenizer
    if ours is None or theirs is None:
        section.warn("not compared: a tokenizer is missing")
        return
    before = len(section.findings)
    with section.guarded():
        check_tokenizers(ours, theirs, student.section.path, teacher.section.path)
        section.ok(f"the same {len(ours):,} tokens with the same ids")
    if section.findings[before].level == "problem":
        for line in differing(ours.get_vocab(), theirs.get_vocab()):
            section.note(line)
    added = ours.get_added_vocab().keys() ^ theirs.get_added_vocab().keys()
    if added:
        section.note(f"added tokens of one of them only: {', '.join(sorted(added)[:EXAMPLES])}")
    named = [
        f"{name} {getattr(ours, f'{name}_token')!r} and {getattr(theirs, f'{name}_token')!r}"
        for name in ("eos", "bos", "pad")
    ]
    section.note("of student and teacher: " + "; ".join(named))
    _ends(student, teacher, section)
    _templates(ours, theirs, section)


def differing(ours: dict[str, int], theirs: dict[str, int]) -> list[str]:
    """The first few tokens that have not the same id in both."""
    tokens = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
    tokens.sort(key=lambda token: (min(ours.get(token, 1 << 60), theirs.get(token, 1 << 60)), token))
    return [
        f"{token!r}: id {ours.get(token, 'none')} in the student, {theirs.get(token, 'none')} in the teacher"
        for token in tokens[:EXAMPLES]
    ]


def rows(student: Source, teacher: Source, section: Section) -> None:
    """Rows of the models' vocabularies against their tokenizers and one another."""
    sizes = {}
    for source in (student, teacher):
        if source.config is None:
            continue
        size = sizes[source.name] = source.config.vocab_size
        if source.tokenizer is None:
            section.note(f"the {source.name} has {size:,} rows")
            continue
        with section.guarded():
            assembly.check_vocabulary(source.name, size, source.section.path, source.tokenizer)
            padding = size - len(source.tokenizer)
            section.ok(
                f"the {source.name} has {size:,} rows for {len(source.tokenizer):,} tokens"
                + (f": {padding:,} of padding, which is fine" if padding else "")
            )
    if len(sizes) == 2 and sizes["student"] > sizes["teacher"]:
        section.note(f"ids from {sizes['teacher']:,} on exist in the student only, and are never sampled")


def _ends(student: Source, teacher: Source, section: Section) -> None:
    found = []
    for source in (student, teacher):
        with section.guarded():
            found.append(assembly.stop_ids(source.key, source.section, source.folder or "", source.tokenizer))
    if len(found) < 2:
        return
    ours, theirs = found
    if ours == theirs:
        section.ok(f"both end a response with the ids {', '.join(map(str, ours))}")
    else:
        section.warn(
            f"the student ends with the ids {ours}, the teacher with {theirs}: responses end at the student's; set "
            "eos_token_id alike in both generation_config.json"
        )


def _templates(ours: Tokenizer, theirs: Tokenizer, section: Section) -> None:
    if ours.chat_template == theirs.chat_template:
        section.ok("the same chat template" if ours.chat_template else "no chat template: prompts are bare text")
        return
    texts = []
    for tokenizer in (ours, theirs):
        try:
            texts.append(_rendered(tokenizer))
        except Exception as error:  # templates are code of the model's, and raise what they like
            texts.append(f"<refused: {error}>")
    if texts[0] == texts[1]:
        section.ok("chat templates differ, and render a plain question alike")
    else:
        section.warn(
            "the chat templates differ, and the student's is used for both: the teacher may read prompts it was not "
            f"trained on; a question becomes {texts[0]!r} with the student's and {texts[1]!r} with the teacher's"
        )


def _rendered(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        return CONVERSATION[0]["content"]
    return tokenizer.apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
