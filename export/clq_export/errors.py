"""What this package raises for a user's mistake or an artefact that is not the model.

ClqExportError
├── ParityError      the exported graph differs from the torch model
├── PrecisionError   a bundle of lower precision loses too much AP
└── ExportError      an input or an output folder that can't be used
"""


class ClqExportError(Exception):
    """Base of all; the command line prints its message and exits with 1."""


class ParityError(ClqExportError):
    pass


class PrecisionError(ClqExportError):
    pass


class ExportError(ClqExportError):
    pass
