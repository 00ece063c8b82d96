"""The command line: dataclasses become flags, every failure one line and an exit status.

Flags come from frozen dataclasses through tyro: a field `run_dir` becomes `--run-dir` (underscores
are accepted too), a nested `mesh: MeshConfig` becomes `--mesh.data`, the docstring under a field is
its help. The exit statuses are those of `STATUSES` in main.py. jax and flax are not imported here,
so that `--help` answers at once.
"""

import contextlib
import dataclasses
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import tyro

from jaxformer.cli.help import BOXES, HELP, program_help
from jaxformer.errors import UserError
from jaxformer.runtime.signals import ENDING, SignalGuard, Terminated, exit_message, exit_now
from jaxformer.terminal import say

OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory")
"""How XLA says so; on CPU as an internal error."""

ConfigT = TypeVar("ConfigT")

RunPath = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
"""The directory of a run, named first and without a flag: `jaxformer plot RUN`."""


@dataclasses.dataclass(frozen=True)
class CheckpointArguments:
    """Which checkpoint of a run a command reads, as `load_run` takes it."""

    step: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Use the checkpoint of this step; by default the newest."""
    best: bool = False
    """Use the checkpoint with the lowest validation loss, which every run keeps."""


_PATHS = tyro.constructors.ConstructorRegistry()


@_PATHS.primitive_rule
def _path_rule(
    type_info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Path] | None:
    """A path, which is not empty: a variable that is unset must not name the working directory."""
    if type_info.type is not Path:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda words: _named_path(words[0]),
        is_instance=lambda value: isinstance(value, Path),
        str_from_instance=lambda path: [str(path)],
    )


def _named_path(word: str) -> Path:
    if not word:
        raise ValueError("is empty: name a file or directory")
    return Path(word)


def parse(
    config_type: type[ConfigT],
    argv: Sequence[str],
    prog: str,
    description: str,
    default: ConfigT | None = None,
    usual: Sequence[str] = (),
) -> ConfigT:
    """Read a frozen dataclass from the words of a command line.

    Args:
        config_type: the dataclass; fields without a default are required.
        argv: the words after the program's name.
        prog: what the user typed to get here, such as `jaxformer plot`.
        description: the paragraph under the usage line of `--help`.
        default: an instance whose values are the defaults, such as a preset.
        usual: patterns of the flags that `--help` shows, `--data.*`; by default all, as
            `--help-all` does.

    Raises:
        SystemExit: with 0 after `--help`; with 2 after one line on standard error for anything that
            is wrong with the words, including a UserError from the dataclass itself.
    """
    asked = set(HELP) & set(argv)
    boxes, complaint = io.StringIO(), io.StringIO()
    # Wide, so that tyro's box for an error holds each sentence on one line.
    width = BOXES if asked else 10_000
    try:
        with (
            _terminal_width(width),
            contextlib.redirect_stderr(complaint),
            contextlib.redirect_stdout(boxes),
        ):
            return tyro.cli(
                config_type,
                prog=prog,
                description="",
                args=["--help"] if asked else argv,
                default=tyro.MISSING_NONPROP if default is None else default,
                registry=_PATHS,
            )
    except UserError as error:
        fail(prog, str(error))
    except SystemExit as stop:
        if not stop.code:
            everything = "--help-all" in asked
            print(program_help(prog, description, boxes.getvalue(), usual, everything))
            raise
        refusal = _user_error_behind(stop)
        fail(prog, str(refusal) if refusal else _one_line(complaint.getvalue(), prog))


def run_command(prog: str, function: Callable[[], int | None]) -> None:
    """Run a command to its end; the user sees one line for every failure.

    That includes a defect of the program itself; JAXFORMER_TRACEBACK=1 shows its traceback. If one
    of several processes fails, it does not wait for the others. A signal ends the process.

    Raises:
        SystemExit: with the status, unless that is 0.
    """
    try:
        with SignalGuard(prog):
            _run_and_explain(prog, function)
    except SystemExit as stop:
        distributed = sys.modules.get("jaxformer.runtime.distributed")
        if distributed is not None:
            distributed.abort(stop.code)
        if stop.code in {128 + number for number in ENDING}:
            exit_now(stop.code)
        raise


def _run_and_explain(prog: str, function: Callable[[], int | None]) -> None:
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # an ASCII terminal can show any text
    try:
        try:
            status = function()
        finally:
            sys.stdout.flush()
    except UserError as error:
        fail(prog, str(error))
    except KeyboardInterrupt:
        print(exit_message(prog, signal.SIGINT), file=sys.stderr)
        raise SystemExit(130) from None
    except Terminated as ended:
        print(exit_message(prog, ended.number), file=sys.stderr)
        raise SystemExit(128 + ended.number) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at exit
        raise SystemExit(141) from None
    except OSError as error:
        fail(prog, _explain(error))
    except Exception as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
            fail(prog, "out of memory: choose a smaller model, context, batch or beam")
        if os.environ.get("JAXFORMER_TRACEBACK") == "1":
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        shown = "set JAXFORMER_TRACEBACK=1 for the traceback"
        if setting := _jax_setting_behind(error):
            fail(prog, f"{what}: unset or change {setting}, or {shown}")
        fail(prog, f"internal error: {what} ({shown})", status=1)
    if status:
        raise SystemExit(status)


def _open_closed_streams() -> None:
    """Let what a closed stream is given go nowhere, and no file that is opened get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _jax_setting_behind(error: Exception) -> str | None:
    """The setting of JAX, with its value, that an error follows from.

    JAX names the variable whose value it refuses (`JAX_ENABLE_X64`, `jax_enable_x64`); a number
    that is not finite is an error only where JAX_DEBUG_NANS or JAX_DEBUG_INFS asks for it.
    """
    said = str(error).lower().replace("jax.", "jax_")
    for name, value in os.environ.items():
        debugged = isinstance(error, FloatingPointError) and name.startswith("JAX_DEBUG_")
        if name.startswith("JAX_") and (debugged or name.lower() in said):
            return f"{name}={value}"
    return None


def fail(prog: str, message: str, status: int = 2) -> NoReturn:
    """End the program with one line on standard error."""
    say(f"{prog}: error: {' '.join(message.split())}", sys.stderr)
    raise SystemExit(status) from None


def _explain(error: OSError) -> str:
    """What the operating system refused, for which file, and what to do about it."""
    advice = {
        errno.ENOSPC: "free some space and run it again",
        errno.EDQUOT: "free some space and run it again",
        errno.EACCES: "check its permissions",
        errno.EPERM: "check its permissions",
        errno.EROFS: "choose a directory that can be written",
    }.get(error.errno or 0, "check the path")
    reason = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{reason}; {advice}"


def last_value(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag, given as `--flag value` or `--flag=value`; the last one counts."""
    value = None
    for index, spelled in enumerate(argv):
        head, sign, tail = spelled.partition("=")
        word = head.replace("_", "-") + sign + tail  # tyro takes both spellings
        if word == flag and index + 1 < len(argv):
            value = argv[index + 1]
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


@contextlib.contextmanager
def _terminal_width(columns: int) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _user_error_behind(error: BaseException) -> UserError | None:
    """tyro wraps what a dataclass raises; the refusal itself is further up the chain."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__context__
    return cause


_PLAINER = (
    (r"^Error parsing ", ""),
    (r"'None', | \?'None'", ""),
    (
        r"^(\S+): no type matching \{None\}\|(?:INT|FLOAT) could be .* from \['(.*?)'\].*",
        r"\1: '\2' is not a number",
    ),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (
        r"^Missing value for argument .*?(--[\w.-]+).*",
        r"\1 needs a value; write one that begins with a dash as \1=VALUE",
    ),
    (
        r"^invalid choice ('.*') for argument '(.*?)'. Expected one of \((.*)\)",
        r"\2: \1 is none of \3",
    ),
    (r"^(\S+): (?:no type matching .*: )?(is empty: name a file or directory)", r"\1 \2"),
    (r"^Missing from [^:]*:", "missing"),
    (r"^Unrecognized options:", "unknown argument"),
)


def _one_line(box: str, prog: str) -> str:
    """Fold the box that tyro draws around an error: its first section, and the flags it suggests.

    A box has a title, then sections between rules; the border is `│ ` or, on terminals without
    such signs, two blanks. Flags stand four columns in, their help eight.
    """
    rows = [row[2:].rstrip(" │") for row in box.splitlines() if row[:2] in ("│ ", "  ")]
    rules = [i for i, row in enumerate(rows) if re.fullmatch(r"─+|-{3,}", row)]
    end = rules[0] if rules else len(rows)
    complaint = " ".join(row.strip() for row in rows[:end] if not row.startswith(" " * 8))
    for pattern, plain in _PLAINER:
        complaint = re.sub(pattern, plain, complaint)
    similar = [row.split()[0].rstrip(",") for row in rows[end:] if re.match(r" {4}--", row)]
    if complaint.startswith("unknown argument") and similar:
        return f"{complaint}; perhaps you meant {' or '.join(similar)}"
    return f"{complaint.strip(' .') or 'the arguments are not understood'}; see {prog} --help"
