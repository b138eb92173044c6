"""Look at a trace: a summary that names stragglers, or an export for Perfetto.

`wagma trace chrome` writes the Chrome trace event format: open it at https://ui.perfetto.dev, or in chrome://tracing.
"""

from __future__ import annotations

import argparse
import os
from functools import partial

from wagma.errors import InputError
from wagma.files import why_not_writable
from wagma.report.chrome import export
from wagma.results import staleness_bound
from wagma.seeing import summary_of
from wagma.trace import load_trace, read_records


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    about = "what each rank did, who was late most, who computed slowest, who was waited for"
    summary = kinds.add_parser("summary", help=about, description=f"Print {about}.")
    summary.add_argument("files", nargs="+", metavar="TRACE", help="a file that --trace wrote; one after the other")
    about = "the Chrome trace event format, for Perfetto and chrome://tracing"
    chrome = kinds.add_parser("chrome", help=about, description=f"Write {about}.")
    chrome.add_argument("file", metavar="TRACE", help="a file that --trace wrote")
    chrome.add_argument("-o", "--output", metavar="FILE", required=True, help="the JSON file; gzipped if it ends in .gz")
    chrome.add_argument("--first", type=_whole, default=0, metavar="N", help="the iteration to begin with (default: 0)")
    chrome.add_argument("--count", type=_whole, metavar="N", help="how many iterations (default: all)")


def run(options: argparse.Namespace) -> int:
    """Print or write it."""
    if options.kind == "chrome":
        return _chrome(options)
    for number, path in enumerate(options.files):
        trace = load_trace(path)
        if not trace.starts:
            raise InputError(f"trace {path}: no rank has a record in it")
        if number:
            print()
        print(summary_of(trace, staleness_bound(trace.header.algorithm, trace.schedule)))
    return 0


def _chrome(options: argparse.Namespace) -> int:
    reason = why_not_writable(options.output)
    if reason is not None:
        raise InputError(f"--output {options.output!r}: cannot be written: {reason}")
    if os.path.realpath(options.output) == os.path.realpath(options.file):
        raise InputError(f"--output {options.output!r}: is the trace itself; must be another file")
    if options.count == 0:
        raise InputError("--count 0: must be at least 1")
    export(partial(read_records, options.file), options.output, options.first, options.count)
    return 0


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 0")
    return int(text)
