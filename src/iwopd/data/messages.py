"""The content of a prompt column, as chat messages: a text, or messages in the forms that datasets use."""

from typing import Any

Message = dict[str, Any]

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}
CHAT_KEYS = ({"role", "content"}, {"from", "value"})  # the second as ShareGPT has it


def as_messages(problem: object) -> list[Message]:
    """Chat messages, each with a role and its content as text.

    Read are a text, which is a user's turn; messages with role and content; ShareGPT's, with from and value; and
    content in parts ({type: text, text: …}), which are joined by line breaks. A key whose value is null is left out at
    every depth, for tables of typed columns give every message all keys of any message.

    Raises:
        ValueError: it is none of these, or a part is no text; says what.
    """
    if isinstance(problem, str):
        return [{"role": "user", "content": problem}]
    messages = _listed(problem)
    if not isinstance(messages, list) or not messages:
        raise ValueError("neither a text nor a list of messages with role and content")
    return [_message(message) for message in messages]


def _listed(problem: object) -> object:
    """Of one message, or of a record of lists such as {role: […], content: […]}, the list of messages."""
    if not isinstance(problem, dict) or not any(keys <= problem.keys() for keys in CHAT_KEYS):
        return problem
    if not all(isinstance(values, list) for values in problem.values()):
        return [problem]
    return [dict(zip(problem, values, strict=False)) for values in zip(*problem.values(), strict=False)]


def _message(given: object) -> Message:
    message = _without_nulls(given)
    if isinstance(message, dict) and message.keys() >= {"from", "value"}:
        role, content = message.pop("from"), message.pop("value")
        message = {"role": ROLES.get(role, role) if isinstance(role, str) else role, "content": content, **message}
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError("neither a text nor a list of messages with role and content")
    if message.get("content") is None:
        if not message.get("tool_calls"):
            raise ValueError(f"neither a text nor a list of messages with role and content: a message of the role "
                             f"{message['role']} has no content")  # fmt: skip
        message["content"] = ""  # some templates print None, others an empty text
    if not isinstance(message["content"], str):
        message["content"] = _joined(message["content"])
    return message


def _joined(parts: object) -> str:
    texts: list[str] = []
    for part in parts if isinstance(parts, list) else [parts]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "unknown") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"neither a text nor a list of messages with role and content: a part of the type {kind}, "
                             "and only text can be read here")  # fmt: skip
        texts.append(text)
    return "\n".join(texts)


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
