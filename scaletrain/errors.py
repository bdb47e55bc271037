"""The errors that a user can act on: one line that holds the value, the rule and the remedy."""


class ScaleTrainError(Exception):
    """A fault in what the user gave us. Programs print the message alone and exit with `EXIT_USER`."""


class ConfigError(ScaleTrainError):
    """A recipe, an override, a DeepSpeed file or a run folder that cannot be used."""


class DataError(ScaleTrainError):
    """An input, a tokenizer or a dataset that is missing, damaged or does not fit."""


class CheckpointError(ScaleTrainError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class ClusterError(ScaleTrainError):
    """A launch environment that contradicts itself or a peer that cannot be reached."""


class NotPlannableError(ScaleTrainError):
    """A model whose memory is known only once it runs."""


class TrainingError(ScaleTrainError):
    """A run whose loss or gradients leave nothing to train on; its work is saved."""


class CorruptionError(ScaleTrainError):
    """Weights that are not what they should be: nothing that holds them is saved."""


EXIT_USER = 2  # the input is at fault: one line says value, rule, remedy
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after saving; the same command goes on
