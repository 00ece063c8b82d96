"""UserError: bad input, reported in one line that says what is wrong and what to do."""


class UserError(ValueError):
    """Bad input. Commands print its message as one line and exit with status 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that failed although its input is fine: a step
hung, or another process of the run died. Start it again with `--resume`."""
