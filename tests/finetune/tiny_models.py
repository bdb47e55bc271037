"""Hugging Face folders of models that train in a second: an encoder and two decoders over a few words."""

import json
import random
from pathlib import Path
from typing import Any

import torch

WORDS = [
    *("good", "bad", "film", "the", "a", "was", "is", "it", "very", "not", "great", "awful", "plot", "actor"),
    *("Anna", "Berlin", "lives", "in", "Bob", "Paris", "where", "who", "does", "when", "what", "red", "blue"),
    *("user", "assistant", "system", "hello", "bye", "count", "one", "two", "three", "four", "five"),
    *("answer", "question", ".", "?", "!"),
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>", "\n"]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def make_models(folder: Path) -> Path:
    """bert/, llama/ (tied, grouped heads), gpt2/ and wide/ (a Llama with far more weights than an adapter has) below
    `folder`, of random weights."""
    from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = BertModel(BertConfig(**SIZES, max_position_embeddings=128, pad_token_id=0, **no_dropout))
    special = {"max_position_embeddings": 128, "tie_word_embeddings": True, "eos_token_id": 5, "bos_token_id": None}
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, **special, num_key_value_heads=2, pad_token_id=0))
    gpt2 = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=5, eos_token_id=5,
        )
    )  # fmt: skip
    large = {**SIZES, "hidden_size": 256, "intermediate_size": 512}
    wide = LlamaForCausalLM(LlamaConfig(**large, **special, num_key_value_heads=2, pad_token_id=0))
    for name, model in (("bert", bert), ("llama", llama), ("gpt2", gpt2), ("wide", wide)):
        model.save_pretrained(folder / name)
        make_tokenizer(pairs=name == "bert").save_pretrained(folder / name)
    return folder


def make_tokenizer(*, pairs: bool) -> Any:
    """A word a token; an encoder's puts [CLS] and [SEP] around."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if not pairs:
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="<|im_end|>",
            additional_special_tokens=["<|im_start|>"],
        )  # fmt: skip
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def make_examples(folder: Path) -> Path:
    """classify.jsonl, tag.jsonl, span_qa.jsonl, sft.jsonl: each of a rule that a tiny model learns."""
    draw = random.Random(0)

    def some(most: int) -> list[str]:
        return [draw.choice(WORDS[2:12]) for _ in range(draw.randint(2, most))]

    rows: dict[str, list[dict[str, Any]]] = {"classify": [], "tag": [], "span_qa": [], "sft": []}
    numbers = ["one", "two", "three", "four", "five"]
    for number in range(120):
        words = some(8)
        word = draw.choice(["good", "bad"])
        words.insert(draw.randrange(len(words) + 1), word)
        rows["classify"].append({"text": " ".join(words), "label": {"good": "praise", "bad": "blame"}[word]})
        tokens = [draw.choice(WORDS) for _ in range(draw.randint(2, 12))]
        kinds = {"Anna": "B-PER", "Bob": "B-PER", "Berlin": "B-LOC", "Paris": "B-LOC"}
        rows["tag"].append({"tokens": tokens, "tags": [kinds.get(token, "O") for token in tokens]})
        who, where = draw.choice(["Anna", "Bob"]), draw.choice(["Berlin", "Paris"])
        context = " ".join([*some(5), who, "lives in", where, ".", *some(5)])
        answers = {"text": [where], "answer_start": [context.index(where)]}
        rows["span_qa"].append(
            {"id": str(number), "question": f"where does {who} lives ?", "context": context, "answers": answers}
        )
        start = draw.randrange(4)
        said = " ".join([numbers[start + 1], *numbers[:start]])
        rows["sft"].append(
            {
                "messages": [
                    {"role": "user", "content": f"count {numbers[start]} ?"},
                    {"role": "assistant", "content": said},
                ]
            }
        )
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return folder
