"""What every process of a prepare must agree on, settled once and kept in OUT.partial: units, split and tokenizer."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from scaletrain.data.prepare.corpus import decide_split, sample_text
from scaletrain.data.prepare.options import PrepareOptions, Progress, sample_bytes
from scaletrain.data.prepare.partial import SPLIT
from scaletrain.data.prepare.readers import cut_units
from scaletrain.data.prepare.splitting import SplitRule
from scaletrain.data.prepare.train_tokenizer import TRAINERS
from scaletrain.data.prepare.units import Source, Unit
from scaletrain.data.shards import DTYPES
from scaletrain.data.tokenizer import Tokenizer, load_tokenizer
from scaletrain.runtime.files import TEMPORARY, write_json

TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Work:
    """What is to be encoded, and how."""

    partial: Path
    units: Sequence[Unit]
    rule: SplitRule
    tokenizer: Tokenizer

    @property
    def itemsize(self) -> int:
        return DTYPES[self.tokenizer.dtype].itemsize


def set_up(
    partial: Path, options: PrepareOptions, sources: list[Source], given: Tokenizer | None, progress: Progress
) -> Work:
    """Settles what no former run or other part has; the caller sees to it that one process at a time does."""
    units = cut_units(sources, options.reading)
    rule = _settle_split(partial, options, units)
    tokenizer = _settle_tokenizer(partial, options, units, rule, given, progress)
    return Work(partial, units, rule, tokenizer)


def find_work(partial: Path, options: PrepareOptions, sources: list[Source], given: Tokenizer | None) -> Work | None:
    """What parts have settled; None if none of them came so far."""
    rule = _read_split(partial)
    if rule is None or not (partial / TOKENIZER).exists():
        return None
    return Work(partial, cut_units(sources, options.reading), rule, _load(partial, options, given))


def _settle_split(partial: Path, options: PrepareOptions, units: Sequence[Unit]) -> SplitRule:
    rule = _read_split(partial)
    if rule is None:
        rule = decide_split(units, options.reading, options.validation, options.seed)
        write_json(partial / SPLIT, asdict(rule))
    return rule


def _read_split(partial: Path) -> SplitRule | None:
    try:
        return SplitRule(**json.loads((partial / SPLIT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _settle_tokenizer(
    partial: Path,
    options: PrepareOptions,
    units: Sequence[Unit],
    rule: SplitRule,
    given: Tokenizer | None,
    progress: Progress,
) -> Tokenizer:
    """The tokenizer saved in the dataset, given or trained once; what workers load is what users will load."""
    folder = partial / TOKENIZER
    if not folder.exists():
        unfinished = partial / f"{TOKENIZER}{TEMPORARY}"
        if unfinished.exists():
            shutil.rmtree(unfinished)  # of a process that was killed
        tokenizer = given
        if tokenizer is None:
            assert options.train_tokenizer is not None
            budget = sample_bytes(options)
            progress.stage("training tokenizer", min(budget, sum(unit.bytes for unit in units)))
            texts = _watched(sample_text(units, options.reading, rule, budget), progress)
            tokenizer = TRAINERS[options.tokenizer_kind](texts, options.train_tokenizer, unfinished)
        tokenizer.save(unfinished)
        unfinished.rename(folder)
    return _load(partial, options, given)


def _load(partial: Path, options: PrepareOptions, given: Tokenizer | None) -> Tokenizer:
    name = given.name if given else f"{options.tokenizer_kind}-{options.train_tokenizer}"
    return replace(load_tokenizer(partial / TOKENIZER), name=name)


def _watched(texts: Iterator[str], progress: Progress) -> Iterator[str]:
    for text in texts:
        yield text
        progress.advance(len(text), len(text))
