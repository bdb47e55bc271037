"""How much of a batch is worked on at once, where all of it would take too much memory. No torch: planning needs it."""

QUERY_BLOCK = 128  # queries of blocked_attention.py: fastest of 64, 128, 256, 512 at 512 to 4,096 tokens
# Logits of a chunk of the loss, in the weight's type. A CPU's stay below what glibc's heap keeps (runtime/heap.py): a
# larger piece is new memory at each step, and its page faults cost a tenth of the loss (8,192 words, 384 wide).
CHUNK_BYTES = {"cpu": 31 * 2**20, "cuda": 512 * 2**20}
SOFTMAX_BYTES = {"cpu": 2 * 2**20, "cuda": 128 * 2**20}  # of these in float32 at a time; a CPU's stay in its cache
# Words whose gradients a chunk adds at a time. All 32,000 words x 768 at once take a CPU 1.3 times as long: oneDNN
# takes new memory for the product's float32 sums, and faults it in.
GRADIENT_WORDS = {"cpu": 2048, "cuda": 32768}


def tokens_of_chunk(tokens: int, vocab_size: int, itemsize: int, device: str) -> int:
    """Of the loss (loss.py), of so many tokens: chunks of about one size."""
    most = max(128, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (itemsize * vocab_size))
    return -(-tokens // -(-tokens // most)) if tokens else most


def rows_of_softmax(vocab_size: int, device: str) -> int:
    return max(16, SOFTMAX_BYTES.get(device, SOFTMAX_BYTES["cpu"]) // (4 * vocab_size))


def words_of_gradient(vocab_size: int, device: str) -> int:
    return min(vocab_size, GRADIENT_WORDS.get(device, GRADIENT_WORDS["cpu"]))
