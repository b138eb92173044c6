"""Check the promises on traces, of either world."""

from __future__ import annotations

import argparse

from wagma.trace import load_trace
from wagma.validate import report, validate


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("traces", nargs="+", metavar="TRACE", help="a file that --trace wrote; several are compared too")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing unless a promise is violated")


def run(options: argparse.Namespace) -> int:
    """Print the report; status 1 if a promise is violated."""
    traces = [load_trace(path) for path in options.traces]
    violations = validate(*traces)
    if violations or not options.quiet:
        print(report(traces, violations))
    return 1 if violations else 0
