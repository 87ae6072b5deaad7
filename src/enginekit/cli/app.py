"""Names of the commands and how a run ends."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from enginekit._version import __version__
from enginekit.cli import errors
from enginekit.cli.output import is_unicode
from enginekit.errors import EngineKitError

app = App(
    name="enginekit",
    help="One chat model over every self-hosted engine.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(negative=()),
)
app.command(
    "enginekit.cli.chat:chat",
    name="chat",
    help="Ask a model something; without a prompt, converse.",
)
app.command(
    "enginekit.cli.engines:engines",
    name="engines",
    help="Show which engines run here, and what each can do.",
)
app.command(
    "enginekit.cli.config:config",
    name="config",
    help="Show the settings in effect and where each comes from.",
)
app.command(
    "enginekit.cli.plan:plan", name="plan", help="Show whether a model fits, how fast, and why."
)
app.command(
    "enginekit.cli.matrix:matrix", name="matrix", help="Show rules of thumb beside exact sizes."
)
app.command(
    "enginekit.cli.models:models", name="models", help="Show the names that the catalog knows."
)
app.command(
    "enginekit.cli.hardware:hardware",
    name="hardware",
    help="Show the machines that can be planned for by name.",
)
app.command(
    "enginekit.cli.doctor:doctor",
    name="doctor",
    help="Show the hardware that was found, and how we know.",
)
app.command("enginekit.cli.pull:pull", name="pull", help="Fetch a model for the embedded engine.")
app.command(
    "enginekit.cli.trust:trust",
    name="trust",
    help="Let API keys go to an address that a project file named.",
)


def run(arguments: list[str] | None = None) -> int:
    """Parse and run; every error becomes a message on stderr and an exit code."""
    previous: Any = None
    _print_whatever_comes()
    try:
        # A terminated process must unwind: sockets, part files and leases are let go of on the way.
        previous = signal.signal(signal.SIGTERM, _terminated)
    except ValueError:
        previous = None
    try:
        result = app(
            arguments if arguments is not None else sys.argv[1:],
            exit_on_error=False,
            print_error=False,
        )
        sys.stdout.flush()
        return int(result or 0)
    except CycloptsError as error:
        errors.show_usage(str(error), error.command_chain or ())
        return errors.USAGE
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader left (`| head -1`).
        _close_stdout()
        return errors.INTERRUPTED
    except OSError as error:
        if isinstance(error, EngineKitError):
            return errors.show(error)
        _close_stdout()
        return errors.show_system(error)
    except Exception as error:
        return errors.show(error)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _print_whatever_comes() -> None:
    """Let a terminal that is not UTF-8 show an escape for what it lacks, rather than crash."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="backslashreplace")


def _close_stdout() -> None:
    """Keep the interpreter from flushing into a pipe or file that takes no more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminated(_signal: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)
