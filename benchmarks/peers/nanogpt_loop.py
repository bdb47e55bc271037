"""nanoGPT's train.py, unchanged, timed by its own log; from the clone that install.sh nanogpt makes.

    python benchmarks/peers/nanogpt_loop.py DATASET --steps 12

Its defaults but for the sizes and the biases: torch.compile, clipping at 1.0. On a GPU it trains in bfloat16 by
autocast with the fused AdamW; on a CPU its script knows float32 and the plain AdamW only. Prints one JSON object.
"""

import argparse
import io
import json
import os
import pickle
import re
import runpy
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from scaletrain.data.shards import open_dataset, open_tokens
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.world import World
from scaletrain.track.meter import peak_memory_bytes

CLONE = Path(__file__).resolve().parents[2] / "build" / "peers" / "nanogpt"


def write_data(source: Path, folder: Path) -> None:
    """The training tokens in the form that train.py reads."""
    dataset = open_dataset(source)
    tokens = np.concatenate([open_tokens(dataset, shard) for shard in dataset.train]).astype(np.uint16)
    for split in ("train", "val"):
        tokens.tofile(folder / f"{split}.bin")
    with (folder / "meta.pkl").open("wb") as file:
        pickle.dump({"vocab_size": dataset.tokenizer.vocab_size}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    for name in ("layers", "heads", "hidden", "context", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    device, log = device_of(World()), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        write_data(args.dataset.resolve(), Path(folder))
        settings = {
            "out_dir": folder, "dataset": folder, "eval_interval": 10**9, "eval_iters": 1, "bias": True,
            "gradient_accumulation_steps": 1, "batch_size": args.batch, "block_size": args.context,
            "n_layer": args.layers, "n_head": args.heads, "n_embd": args.hidden,
            "max_iters": args.steps - 1, "device": device.type,
        }  # fmt: skip
        if device.type == "cpu":
            settings["dtype"] = "float32"  # float16, its choice there, only gives its gradient scaler work
        os.chdir(CLONE)
        sys.path.insert(0, str(CLONE))
        sys.argv = ["train.py", *(f"--{name}={value}" for name, value in settings.items())]
        with redirect_stdout(log):
            runpy.run_path("train.py", run_name="__main__")
    seconds = [float(found) / 1000 for found in re.findall(r"^iter \d+: .*time ([\d.]+)ms", log.getvalue(), re.M)]
    print(json.dumps({"step_seconds": seconds, "peak_memory_bytes": peak_memory_bytes(device)}))


if __name__ == "__main__":
    main()
