"""What this package raises for a user's mistake.

ClqTrainError
├── ConfigError       a configuration file or an override
├── DataError         annotations or images
├── CheckpointError   a checkpoint that can't be read, written or gone on with
└── TrainingError     a run that can't go on (a non-finite loss)
"""


class ClqTrainError(Exception):
    """Base of all; the command line prints its message and exits with 1."""


class ConfigError(ClqTrainError):
    pass


class DataError(ClqTrainError):
    pass


class CheckpointError(ClqTrainError):
    pass


class TrainingError(ClqTrainError):
    pass
