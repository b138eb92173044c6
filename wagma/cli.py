"""The command line: chooses the world, and turns every failure into one line and an exit status.

0 good, 1 a promise is violated or a run failed, 2 bad input or something that is not installed, 130 interrupted.
"""

from __future__ import annotations

import sys

EXIT_INTERRUPTED = 130

try:  # Ctrl-C while Python still reads what `main` needs would show a traceback of Python's own
    import argparse
    import os
    from collections.abc import Sequence

    from wagma import __version__
    from wagma.commands import COMMANDS, load_command
    from wagma.commands.parser import Parser
    from wagma.errors import InputError, MissingDependencyError, WagmaError
except KeyboardInterrupt:
    print("wagma: interrupted", file=sys.stderr)
    sys.exit(EXIT_INTERRUPTED)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_BROKEN_PIPE = 141


def parser(only: str | None = None) -> Parser:
    """The parser of all commands; of one alone if `only` is its name, which need not import what the others do."""
    top = Parser(
        prog="wagma",
        description="Wait-avoiding group model averaging: one algorithm core, simulated and on MPI.",
        epilog="Exit status: 0 good, 1 a promise is violated or a run failed, 2 bad input.",
    )
    top.add_argument("--version", action="version", version=f"wagma {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in (name for name in COMMANDS if only not in COMMANDS or name == only):
        module = load_command(name)
        summary = (module.__doc__ or "").partition("\n")[0].rstrip(".")
        own = commands.add_parser(name, help=summary, description=module.__doc__)
        own.formatter_class = argparse.RawDescriptionHelpFormatter
        module.configure(own)
        own.set_defaults(run=module.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name, default: that of the process. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser(arguments[0] if arguments else None).parse_args(arguments)
        options.argv = arguments
        status = int(options.run(options))
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
    except (InputError, MissingDependencyError) as error:
        return _complain(error, EXIT_BAD_INPUT)
    except WagmaError as error:
        return _complain(error, EXIT_FAILED)
    except KeyboardInterrupt:
        if "--launched" not in arguments:  # a rank leaves that to its launcher
            print("wagma: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as error:  # a full disk below standard output; files that options name are checked where they are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _complain(WagmaError(f"standard output: cannot be written: {error.strerror}"), EXIT_FAILED)
    return status


def _complain(error: WagmaError, status: int) -> int:
    text = " ".join(str(error).split())
    print(f"wagma: error: {text}", file=sys.stderr)
    return status
