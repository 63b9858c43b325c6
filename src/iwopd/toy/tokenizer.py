"""A byte-level tokenizer: 256 bytes and four special tokens, with a chat template. Any text encodes."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, USER, ASSISTANT = SPECIAL = ("<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>")

# A system message opens the first user turn, as in templates of models without a system role.
CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] + '\n' -%}
{%- elif message['role'] == 'user' -%}{{ '<|user|>' + ns.system + message['content'] }}{%- set ns.system = '' -%}
{%- else -%}{{ '<|assistant|>' + message['content'] + '<|eos|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, 260 entries; ids 0–255 are the bytes in GPT-2's byte alphabet order."""
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
