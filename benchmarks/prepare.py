"""MB of text a second that `scaletrain prepare` turns into tokens: beside tokenizers, datasets.map and datatrove.

    python benchmarks/prepare.py [--rounds 3] [--output benchmarks/results/NAME.json]
    python benchmarks/prepare.py --text FILE_OR_FOLDER --datatrove VENV/bin/python

Real code (Python's standard library) and real prose (six novels by Jane Austen in a Debian package, which apt fetches),
or any text, as JSON lines, repeated up to --megabytes so that the start of processes does not decide. A round runs
every contestant once, each in a process of its own, on one core and on all, with one byte-level BPE; the next round in
the opposite order. Ratios are taken within a round. Processor seconds are counted too, those of child processes
included: they tell more than the clock where other programs are at work.

    encode_batch         the tokenizers library alone, on texts in memory, its result thrown away
    prepare, encoding    reading, splitting, encoding, checking, writing: until the segments are on the disk
    prepare, whole       and joining, hashing, syncing the dataset
    datasets.map         batched, on `num_proc` processes, until its Arrow files are there; whole: and loading the JSON
    datatrove            its reader and DocumentTokenizer, a file of tokens a process (needs a venv of its own)
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scaletrain.data.prepare.options import PrepareOptions, Report
from scaletrain.data.prepare.run import prepare_dataset
from scaletrain.data.prepare.train_tokenizer import train_byte_bpe
from scaletrain.data.tokenizer import load_tokenizer
from scaletrain.engine.run_folder import environment
from scaletrain.runtime.dist import device_of
from scaletrain.runtime.machine import cores
from scaletrain.runtime.world import World

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "benchmark-prepare"
AUSTEN = "r-cran-janeaustenr"
BATCH = 1000  # texts encoded at once: the default of datasets.map
FILES = 8  # a corpus is written as so many, since datatrove shares out whole files
OURS, RAW = "prepare, encoding", "encode_batch"
Seconds = tuple[float, float | None]  # by the clock, of processors
Timed = dict[str, Seconds]
DATATROVE = """
import json, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer

if __name__ == "__main__":
    corpus, tokenizer, folder, workers = sys.argv[1:]
    tokens = DocumentTokenizer(folder + "/out", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>")
    began = time.perf_counter()
    LocalPipelineExecutor(
        [JsonlReader(corpus), tokens], tasks=int(workers), workers=int(workers), logging_dir=folder + "/log"
    ).run()
    print(json.dumps({"datatrove": [time.perf_counter() - began, None]}))  # it does not wait for its children's end
"""


def code_texts() -> list[str]:
    """The modules of Python's standard library, the installed packages aside."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files if "site-packages" not in file.parts]
    return [text for text in texts if text.strip()]


def prose_texts() -> list[str]:
    """The novels in pieces of some pages; FileNotFoundError where apt cannot fetch them."""
    folder = BUILD / "austen"
    found = list(folder.rglob("Rdata.rdb"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        fetch = ["apt-get", "download", AUSTEN]
        done = subprocess.run(fetch, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise FileNotFoundError(f"apt-get download {AUSTEN} failed: {done.stderr.strip()}")
        subprocess.run(["dpkg", "-x", next(folder.glob("*.deb")), folder], check=True)
        found = list(folder.rglob("Rdata.rdb"))
    return [piece for novel in _read_novels(found[0]) for piece in _pieces(novel, 8000)]


def _read_novels(path: Path) -> Iterator[str]:
    """R's lazy-load file: each object is its size (4 bytes) and zlib data, in which strings have tag 9 and a length."""
    data = path.read_bytes()
    while data:
        packed = zlib.decompressobj()
        object_ = packed.decompress(data[4:])
        data = packed.unused_data
        lines = []
        for tag in re.finditer(rb"\x00[\x00-\x0f][\x00-\xff]\x09", object_):
            (length,) = struct.unpack_from(">i", object_, tag.end())
            if 0 <= length < 400:  # a line of a book; anything else is a chance find
                lines.append(object_[tag.end() + 4 : tag.end() + 4 + length].decode("latin-1"))
        if len(lines) > 1000:
            yield "\n".join(lines)


def _pieces(text: str, size: int) -> Iterator[str]:
    """The text cut at blank lines into pieces of `size` characters or a little more."""
    start = 0
    while start < len(text):
        end = text.find("\n\n", start + size)
        end = len(text) if end < 0 else end + 2
        yield text[start:end]
        start = end


def given_texts(path: Path) -> list[str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [piece for file in files for piece in _pieces(file.read_text(encoding="utf-8", errors="replace"), 8000)]


def write_corpus(name: str, texts: list[str], megabytes: float, vocabulary: int) -> Path:
    """FILES files of JSON lines with texts/, and tokenizer/, trained on the texts."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "texts").mkdir(parents=True)
    train_byte_bpe(texts, vocabulary).save(folder / "tokenizer")
    once = sum(len(text.encode()) for text in texts)
    repeated = texts * max(1, round(megabytes * 1e6 / once))
    for i in range(FILES):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in repeated[i::FILES])
        (folder / "texts" / f"{i}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def read_texts(corpus: Path) -> list[str]:
    files = sorted((corpus / "texts").iterdir())
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def now() -> Seconds:
    """By the clock, and of processors: of this process and of the children that have ended."""
    return time.perf_counter(), sum(os.times()[:4])


def since(began: Seconds, ended: Seconds | None = None) -> Seconds:
    ended = ended or now()
    assert ended[1] is not None
    assert began[1] is not None
    return ended[0] - began[0], ended[1] - began[1]


class Stages:
    """A progress that keeps when each stage began."""

    def __init__(self) -> None:
        self.began: dict[str, Seconds] = {}

    def stage(self, name: str, total: int) -> None:
        del total
        self.began[name] = now()

    def advance(self, done: int, text_bytes: int = 0, tokens: int = 0) -> None: ...
    def say(self, line: str) -> None: ...
    def finish(self, report: Report) -> None: ...


def time_prepare(corpus: Path, folder: Path, workers: int) -> Timed:
    options = PrepareOptions((str(corpus / "texts"),), folder / "set", str(corpus / "tokenizer"), workers=workers)
    stages, began = Stages(), now()
    prepare_dataset(options, stages)
    encoding = since(stages.began["encoding"], stages.began["writing shards"])
    return {OURS: encoding, "prepare, whole": since(began)}


def time_raw(corpus: Path, folder: Path, workers: int, method: str) -> Timed:
    del folder, workers  # RAYON_NUM_THREADS says how many
    encode = getattr(load_tokenizer(corpus / "tokenizer").backend, method)
    texts = read_texts(corpus)
    began = now()
    for i in range(0, len(texts), BATCH):
        encode(texts[i : i + BATCH], add_special_tokens=False)
    return {method: since(began)}


def time_map(corpus: Path, folder: Path, workers: int) -> Timed:
    import datasets
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    datasets.disable_progress_bars()

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    began = now()
    files = [str(file) for file in sorted((corpus / "texts").iterdir())]
    rows = datasets.load_dataset("json", data_files=files, split="train", cache_dir=str(folder))
    loaded = now()
    rows.map(encode, batched=True, num_proc=workers if workers > 1 else None, remove_columns=["text"])
    return {"datasets.map": since(loaded), "datasets.map, whole": since(began)}


CONTESTANTS: dict[str, Callable[[Path, Path, int], Timed]] = {
    "prepare": time_prepare,
    RAW: lambda corpus, folder, workers: time_raw(corpus, folder, workers, RAW),
    "encode_batch_fast": lambda corpus, folder, workers: time_raw(corpus, folder, workers, "encode_batch_fast"),
    "datasets.map": time_map,
}


def run(name: str, corpus: Path, workers: int, datatrove: Path | None) -> Timed:
    """The seconds of one contestant, in a process of its own, with no more threads than `workers`."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env |= {"RAYON_NUM_THREADS": str(workers), "TOKENIZERS_PARALLELISM": "true" if workers > 1 else "false"}
    if name == "datasets.map":  # it has processes instead
        env["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:
        if name == "datatrove":
            program = Path(folder) / "pipeline.py"
            program.write_text(DATATROVE, encoding="utf-8")
            tokenizer = corpus / "tokenizer" / "tokenizer.json"
            command = [str(datatrove), program, corpus / "texts", tokenizer, folder, workers]
        else:
            command = [sys.executable, __file__, "--contestant", name, corpus, folder, workers]
        done = subprocess.run([str(part) for part in command], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
    seconds: Timed = json.loads(done.stdout.splitlines()[-1])
    return seconds


def summarise(rounds: list[Timed], megabytes: float, tokens: int) -> list[dict[str, Any]]:
    """A row for each figure: medians of the rounds, MB/s also least and most, and the ratios of ours to it."""
    rows = []
    for name in rounds[0]:
        speed = [megabytes / r[name][0] for r in rounds]
        processor = [(r[name][1] or 0, r[OURS][1] or 0) for r in rounds]
        rows.append(
            {
                "name": name,
                "mb_per_second": statistics.median(speed),
                "spread": [min(speed), max(speed)],
                "tokens_per_second": statistics.median(tokens / r[name][0] for r in rounds),
                "ours_is_faster_by": statistics.median(r[name][0] / r[OURS][0] for r in rounds),
            }
        )
        if all(seconds for seconds, _ in processor):
            rows[-1]["mb_per_processor_second"] = statistics.median(megabytes / seconds for seconds, _ in processor)
            rows[-1]["ours_by_processor"] = statistics.median(seconds / ours for seconds, ours in processor)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for column in ("", "MB/s", "spread", "tokens/s", "ours / this", "MB/processor s", "ours / this"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        low, high = row["spread"]
        speed, tokens = f"{row['mb_per_second']:.2f}", f"{row['tokens_per_second']:,.0f}"
        per_processor, ratio = "", ""
        if "ours_by_processor" in row:
            per_processor, ratio = f"{row['mb_per_processor_second']:.2f}", f"{row['ours_by_processor']:.2f}x"
        faster = f"{row['ours_is_faster_by']:.2f}x"
        table.add_row(row["name"], speed, f"{low:.2f} - {high:.2f}", tokens, faster, per_processor, ratio)
    Console(width=110).print(table)


def measure(corpus: Path, rounds: int, datatrove: Path | None) -> dict[str, Any]:
    """Alternating rounds on one core and on all; the sizes of the text as it is prepared."""
    texts, backend = read_texts(corpus), load_tokenizer(corpus / "tokenizer").backend
    megabytes, tokens = sum(len(text.encode()) for text in texts) / 1e6, 0
    for i in range(0, len(texts), BATCH):
        encodings = backend.encode_batch_fast(texts[i : i + BATCH], add_special_tokens=False)
        tokens += sum(len(encoding) for encoding in encodings)
    timed: dict[int, list[Timed]] = {workers: [] for workers in sorted({1, cores()})}
    names = [*CONTESTANTS, *(["datatrove"] if datatrove else [])]
    for number in range(rounds):
        for workers, found in timed.items():
            print(f"{corpus.name}: round {number + 1} of {rounds} on {workers} core(s)", flush=True)
            one: Timed = {}
            for name in names if number % 2 == 0 else reversed(names):
                one |= run(name, corpus, workers, datatrove)
            found.append(dict(sorted(one.items())))
    rows = {str(workers): summarise(found, megabytes, tokens) for workers, found in timed.items()}
    for number_of_cores, table in rows.items():
        show(f"{corpus.name}, {megabytes:.1f} MB, {tokens:,} tokens, {number_of_cores} core(s), {rounds} rounds", table)
    return {"megabytes": megabytes, "documents": len(texts), "tokens": tokens, "rows": rows, "rounds": timed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, help="a file or folder of text in place of the code and the prose")
    parser.add_argument("--megabytes", type=float, default=64, help="size up to which a text is repeated")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--datatrove", type=Path, metavar="PYTHON", help="interpreter of a venv with datatrove[io]")
    parser.add_argument("--output", type=Path, help="JSON file for the figures and the environment")
    parser.add_argument("--contestant", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        name, corpus, folder, workers = args.contestant
        print(json.dumps(CONTESTANTS[name](Path(corpus), Path(folder), int(workers))))
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    before, results = os.getloadavg(), {}
    wanted: dict[str, Callable[[], list[str]]] = {"code": code_texts, "prose": prose_texts}
    if args.text:
        wanted = {"text": partial(given_texts, args.text)}
    for name, texts in wanted.items():
        try:
            corpus = write_corpus(name, texts(), args.megabytes, args.vocabulary)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        results[name] = measure(corpus, args.rounds, args.datatrove)
    if not args.datatrove:
        print("datatrove is left out: name a virtual environment's interpreter that has it with --datatrove")
    if args.output:
        about = environment(World(), device_of(World()), {})
        arguments = ["VENV/bin/python" if text == str(args.datatrove) else text for text in sys.argv[1:]]
        about["command"] = ["python", "benchmarks/prepare.py", *arguments]  # no path or name of this machine
        about["load_average"] = {"before": before, "after": os.getloadavg()}  # 5 minutes each: what else was at work
        del about["host"]
        args.output.write_text(json.dumps({"environment": about, **results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
