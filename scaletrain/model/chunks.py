"""How much of a batch is worked on at once, where all of it would take too much memory. No torch: planning needs it."""

QUERY_BLOCK = 128  # queries of blocked_attention.py: fastest of 64, 128, 256, 512 at 512 to 4,096 tokens
# Logits of a chunk of the loss, in the weight's type. Each chunk reads and writes the float32 gradient of the weight:
# on a CPU 4,096 tokens of 32,000 words x 768 take 2.1 s so, 2.7 in chunks of 262 tokens, 1.8 in chunks thrice as large.
CHUNK_BYTES = {"cpu": 40 * 2**20, "cuda": 512 * 2**20}
SOFTMAX_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}  # of these in float32 at a time; a CPU's stay in its cache


def tokens_of_chunk(vocab_size: int, itemsize: int, device: str) -> int:
    """Of the loss (loss.py)."""
    return max(128, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (itemsize * vocab_size))


def rows_of_softmax(vocab_size: int, device: str) -> int:
    return max(16, SOFTMAX_BYTES.get(device, SOFTMAX_BYTES["cpu"]) // (4 * vocab_size))
