"""The validation text of a live source: its first rows, tokenized once and kept in memory."""

from dataclasses import dataclass

import numpy as np

from scaletrain.data.live.documents import Cursor, RankDocuments
from scaletrain.data.reader import ArrayTokens
from scaletrain.data.rows import CutRows
from scaletrain.data.shards import Tokens
from scaletrain.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class HeldOut:
    """What an evaluation reads, and the UTF-8 bytes of its text."""

    rows: CutRows
    text_bytes: int


def read_held_out(
    documents: RankDocuments, tokenizer: Tokenizer, context: int, rows: int, *, document_mask: bool
) -> HeldOut:
    """At most `rows` rows from the beginning of the split on; DataError when it cannot be read or holds no text."""
    wanted, found, text_bytes = rows * context + 1, 0, 0
    parts: list[Tokens] = []
    ends: list[int] = []
    for part in documents.read(Cursor(), epochs=1):
        for text, tokens in zip(part.texts, tokenizer.encode_batch(part.texts), strict=True):
            ended = np.append(tokens, np.array(tokenizer.eos_id, tokens.dtype))[: wanted - found]
            # Of a text that is cut here, as large a part of its bytes as of its tokens.
            text_bytes += round(len(text.encode()) * len(ended) / (len(tokens) + 1))
            parts.append(ended)
            found += len(ended)
            ends.append(found)
            if found == wanted:
                break
        if found == wanted:
            break
    source = ArrayTokens(np.concatenate(parts), documents.name, np.array(ends, np.uint64))
    return HeldOut(CutRows(source, context, document_mask=document_mask), text_bytes)
