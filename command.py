"""What the commands of the project share: arguments that are checked before any work, a progress bar, Ctrl-C.

A command is a module of `benchmarks` or `examples` with two functions: `parser()` returns a `Parser` whose options have
choices, or one of the types of this module; `main(arguments)` parses them first. `tests/project/test_commands.py` finds
all commands, and gives each option a bad value.
"""

import argparse
import contextlib
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


class Parser(argparse.ArgumentParser):
    """A parser of `python -m MODULE`. A bad value ends the program with one line and exit code 2."""

    def __init__(self, module: str, doc: str | None, **settings: Any) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **settings,
        )

    def parse_known_args(self, *arguments: Any, **settings: Any) -> Any:
        if signal.getsignal(signal.SIGINT) is _end_now:  # the imports are over: from now on, blocks are left properly
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().parse_known_args(*arguments, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}. `{self.prog} --help` explains every argument.\n")


# --- types of arguments -----------------------------------------------------------------------------------------------


def _refuse(kind: str, text: str) -> NoReturn:
    raise argparse.ArgumentTypeError(f"must be {kind}. Received: {text}")


def count(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, 1)


def index(text: str) -> int:
    """A whole number of at least 0, such as a seed."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,18}", text) or int(text) < least:
        _refuse(f"a whole number of at least {least}", text)
    return int(text)


def positive(text: str) -> float:
    """A number greater than 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        _refuse("a number greater than 0", text)
    return value


def text(text: str) -> str:
    """Any text."""
    return text


def pattern(text: str) -> re.Pattern[str]:
    """A regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        _refuse(f"a regular expression ({error})", text)


def input_file(text: str) -> Path:
    """A file that can be read."""
    if not (Path(text).is_file() and os.access(text, os.R_OK)):
        _refuse("a file that can be read", text)
    return Path(text)


def input_folder(text: str) -> Path:
    """A folder that can be read."""
    if not (Path(text).is_dir() and os.access(text, os.R_OK)):
        _refuse("a folder that can be read", text)
    return Path(text)


def output_file(text: str) -> Path:
    """A file that can be written: its folder exists."""
    path = Path(text)
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        _refuse("a file that can be written, in a folder that exists", text)
    return path


def output_folder(text: str) -> Path:
    """A folder that can be written, or made."""
    path = Path(text).absolute()
    above = next(each for each in (path, *path.parents) if each.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        _refuse("a folder that can be written", text)
    return Path(text)


def new_folder(text: str) -> Path:
    """A folder that does not exist, and can be made."""
    if Path(text).exists():
        _refuse("a folder that does not exist yet", text)
    return output_folder(text)


def page_with(mark: str) -> Callable[[str], Path]:
    """Return the type of an existing file with a part between two lines `mark`, which `place` replaces."""

    def page(text: str) -> Path:
        path = output_file(text)
        if path.exists() and path.read_text().count(mark) != 2:
            _refuse(f"a page with two lines {mark}, or a new file", text)
        return path

    return page


def place(path: Path, mark: str, text: str) -> None:
    """Write `text` to a page between its two lines `mark`, or to a new file without them."""
    if path.exists():
        before, _, after = path.read_text().split(mark)
        text = f"{before}{mark}\n{text.rstrip()}\n{mark}{after}"
    path.write_text(text)


# --- a run ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def progress(title: str, steps: float = 1.0, console: Any = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal; elsewhere print a line every ten seconds.

    Call the function that this yields with the steps done and what is being done: a string, or a function that returns
    one and is called only when it is shown. There is no thread that refreshes the bar: it would disturb what is timed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    columns = TextColumn(title, markup=False), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    shown = {"last": 0.0 if console.is_terminal else time.monotonic(), "every": 0.2 if console.is_terminal else 10.0}
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=steps)

        def tell(done: float, what: str | Callable[[], str] = "") -> None:
            if (now := time.monotonic()) - shown["last"] > shown["every"]:
                shown["last"], text = now, what if isinstance(what, str) else what()
                bar.update(task, completed=done, description=text, refresh=True)
                if not console.is_terminal:
                    console.print(f"{title}: {done / steps:.0%} {text}", markup=False, highlight=False)

        yield tell


def end_in_one_line() -> None:
    """Make this program end in one line where Ctrl-C stops it or a package is missing, from its imports on.

    The packages of commands call this. While `python -m package.module` imports the package, `sys.argv[0]` is "-m": in
    any other program this does nothing.
    """
    if sys.argv[:1] == ["-m"]:
        sys.excepthook = _hook
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, _end_now)  # an exception within the import of a C++ module aborts the process


def _end_now(*_: Any) -> NoReturn:
    _end("Interrupted.", INTERRUPTED)


def _hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end("Interrupted.", INTERRUPTED)
    missing = (getattr(error, "name", None) or "").partition(".")[0]
    if issubclass(kind, ModuleNotFoundError) and missing and not (Path(__file__).parent / missing).exists():
        _end(f"This needs the package `{missing}`. The project's extras have it: pip install '.[bench,demo]'", 2)
    sys.__excepthook__(kind, error, trace)


def _end(line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    print(line, file=sys.stderr, flush=True)
    os._exit(code)  # an exit by `sys.exit` would be an exception within the hook
