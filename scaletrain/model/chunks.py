"""How much of a batch is worked on at once, where all of it would take too much memory. No torch: planning needs it."""

QUERY_BLOCK = 128  # queries of blocked_attention.py: fastest of 64, 128, 256, 512 at 512 to 4,096 tokens
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}  # float32 logits of a chunk of the loss
# CPU: 1,024 tokens at 8,192 words (4,096 tokens take 121 ms; in chunks of 256: 128, of 2,048: 130). CUDA: each chunk
# reads and writes the float32 gradient of the weight (0.5 GB at 32k x 4,096), so chunks are thousands of tokens.


def tokens_of_chunk(vocab_size: int, device: str) -> int:
    """Of the loss (loss.py)."""
    return max(128, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocab_size))
