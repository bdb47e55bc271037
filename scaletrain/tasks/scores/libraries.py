"""The libraries that scores are computed with. They are an extra, so they may be missing."""

from importlib.util import find_spec

from scaletrain.errors import ConfigError

PACKAGES = {  # module -> what pip calls it
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "seqeval": "seqeval",
    "sacrebleu": "sacrebleu",
    "rouge_score": "rouge-score",
}


def require(what: str, *modules: str) -> None:
    """Imports nothing, so a run can ask it before it trains for hours up to its first evaluation."""
    missing = [PACKAGES[module] for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(f"{what} needs {', '.join(missing)}, not installed here: pip install 'scaletrain[finetune]'")
