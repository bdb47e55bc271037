"""Messages as tokens: written by the tokenizer's chat template, with the assistant's words marked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scaletrain.errors import DataError


@dataclass(frozen=True)
class Conversation:
    """`answers`: whether a token is the assistant's; `prompt`: tokens up to the last answer; `answer`: its text."""

    ids: npt.NDArray[np.int64]
    answers: npt.NDArray[np.bool_]
    prompt: Sequence[int]
    answer: str

    def cut(self, longest: int) -> "Conversation":
        return replace(self, ids=self.ids[:longest], answers=self.answers[:longest])


def read_conversation(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, place: str, *, with_prompt: bool = True
) -> Conversation:
    """Writes and tokenizes `messages`, which end with an answer; without the prompt, a second time saved, it is empty.

    DataError when the template does not write a conversation's beginning as the beginning of the whole, so that nobody
    could say which tokens are an answer's.
    """
    text = _write(tokenizer, messages, False, place)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _write(tokenizer, messages[:number], True, place)
        after = _write(tokenizer, messages[: number + 1], False, place)
        if not text.startswith(before) or not text.startswith(after):
            raise DataError(
                f"{place}: the chat template does not write message {number + 1} as the beginning of what follows: "
                "set model.chat_template to another (chatml, plain or a file)"
            )
        spans.append((len(before), len(after)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    begins = np.array([begin for begin, _ in encoded["offset_mapping"]], dtype=np.int64)
    answers = np.zeros(len(ids), dtype=bool)
    for begin, end in spans:
        answers |= (begins >= begin) & (begins < end)
    asked = text[: spans[-1][0]] if with_prompt else ""
    prompt = tokenizer(asked, add_special_tokens=False)["input_ids"] if asked else []
    return Conversation(ids, answers, prompt, messages[-1]["content"].strip())


def _write(tokenizer: Any, messages: Sequence[Mapping[str, str]], asks: bool, place: str) -> str:
    from jinja2 import TemplateError

    if not messages:
        return ""
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    except (TemplateError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
        raise DataError(
            f"{place}: the chat template does not take these messages ({reason}): set model.chat_template to another, "
            "or change the messages"
        ) from error
    return text
