"""The two ways in which a run may end early, and their exit codes."""


class UserError(Exception):
    """A mistake in the input: what, where, what is allowed, in one line (exit code 2)."""

    exit_code = 2


class RunError(Exception):
    """The input was right, the run failed: what, which client, why, in one line (exit code 1)."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What an error says, without more than its first line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
