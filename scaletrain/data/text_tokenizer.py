"""A model's own tokenizer, with its special tokens, pairs and chat template, as fine-tuning needs it."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaletrain.config.finetune_schema import FinetuneModel
from scaletrain.errors import ConfigError, DataError

# Dialogue between tokens of any vocabulary; the first is OpenAI's chat markup, the second plain text.
CHAT_TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    ),
}


def load_text_tokenizer(model: FinetuneModel, folder: Path) -> Any:
    """transformers' fast tokenizer of `folder` (or of model.tokenizer) with a padding token.

    ConfigError when there is none, or when model.pad_token or model.chat_template cannot be used.
    """
    from transformers import AutoTokenizer

    place = model.tokenizer or folder
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place, local_files_only=Path(place).is_dir())
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise ConfigError(
            f"{place} holds no tokenizer that transformers loads ({reason}): set model.tokenizer to a folder that does"
        ) from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{place}: its tokenizer is a slow one, which gives no offsets: convert it to tokenizer.json")
    _set_pad_token(tokenizer, model, place)
    _set_chat_template(tokenizer, model)
    return tokenizer


def _set_pad_token(tokenizer: Any, model: FinetuneModel, place: str | Path) -> None:
    if model.pad_token is not None:
        if model.pad_token not in tokenizer.get_vocab():
            raise ConfigError(f"model.pad_token={model.pad_token} is no token of {place}: name one of its vocabulary")
        tokenizer.pad_token = model.pad_token
    elif tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{place} names neither a padding nor an end-of-text token: set model.pad_token")
        tokenizer.pad_token = tokenizer.eos_token


def _set_chat_template(tokenizer: Any, model: FinetuneModel) -> None:
    wanted = model.chat_template
    if wanted is None:
        return
    if wanted in CHAT_TEMPLATES:
        tokenizer.chat_template = CHAT_TEMPLATES[wanted]
        return
    try:
        tokenizer.chat_template = Path(wanted).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.chat_template={wanted} is neither {' nor '.join(CHAT_TEMPLATES)} nor a file that can be read: give "
            "one of them"
        ) from error


def saver(tokenizer: Any) -> Callable[[], Path]:
    """What makes a folder of the tokenizer, for a run to keep a copy of."""

    def save() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="tokenizer-"))
        tokenizer.save_pretrained(folder)
        return folder

    return save


def need_chat_template(tokenizer: Any) -> None:
    """DataError when messages cannot be written as text."""
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the tokenizer has no chat template: set model.chat_template to chatml, plain (text and answer, nothing "
            "between) or a file with a Jinja template"
        )


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; of a character in several tokens the last one shows it."""
    texts, done = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[max(0, end - 16) : end], clean_up_tokenization_spaces=False)
        before = tokenizer.decode(ids[max(0, end - 16) : end - 1], clean_up_tokenization_spaces=False)
        done = text[len(before) :] if text.startswith(before) else text.removeprefix(before.rstrip("\ufffd"))
        texts.append(done)
    return texts
