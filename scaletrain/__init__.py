"""ScaleTrain: from raw text to a trained, resumable, exported GPT with DeepSpeed."""

__version__ = "0.1.0"
