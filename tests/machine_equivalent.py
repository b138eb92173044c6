"""Mutations of the decision machine that change nothing, each with the reason why: by function, source text and kind.

tests/test_machine_mutants.py fails where one of them is caught after all, or is gone from the source; then it is gone from here, too.
"""

from __future__ import annotations

STARTED = (
    "whenever next_version, activated, executing, reading, arrived or closed change so that a version may start, start() is called in"
    " the same event; so between events nothing can start, and an activation of what is activated finds nothing to do"
)
ALL_STARTED = (
    "finish() raises activated to the last version and calls start(); a closed rank has no fence; so while a version up to the last one has"
    " not started, another one is executing or being read, which the other operands ask. It stands there since it is what `done` means"
)
SAME = "equal versions: the assignment gives it the value that it has"

#: Of native/src/protocol.cpp, schedule.cpp and their headers.
CPP: dict[tuple[str, str, str], str] = {
    ("Machine::activation", "version > activated_", "boundary"): STARTED,
    ("Machine::done", "next_version_ > last_", "boundary"): ALL_STARTED,
    ("Machine::done", "next_version_ > last_", "true"): ALL_STARTED,
    ("Machine::tell", "version < solo_from_", "boundary"): SAME,
    ("Machine::complete", "fresh_ != 0", "false"): (
        "where there is nothing to merge the version was merged before, so it had started before the arrival, which was late: fresh is 0"
    ),
    ("Riffle::back", "place < cut", "boundary"): (
        "place == cut, the first card of the smaller piles: both lines give `larger`, the pile that it is on"
    ),
    ("association", "stride < leaves", "boundary"): "stride == leaves: no i is below leaves - stride, so the pass adds nothing",
    ("Schedule::may_activate", "!selective()", "false"): (
        "a short cut: of a schedule that is not selective candidates() has every rank, so the search finds it"
    ),
}

FIRST_STAMPS = "only a run that begins later has other first stamps than -1, and the explorer's runs begin at 0"
ARRIVES_ANYWAY = "the activation of the last version is under way to every rank anyway: finish() is only faster"
ASKED_BY_OTHERS = "an accessor that the engine reads; the explorer and the fuzzer do not"
STAMP = "nobody reads the stamp while nothing is published, and the next arrival sets it"
ACTIVATED_BEFORE = (
    "who closes has returned from all versions before the one that it names, so these are activated already: of two such versions"
    " either may be kept or sent on"
)
SENT_AGAIN = "more messages, which tell the receiver nothing new"

#: Of the machine (protocol.cpp, protocol.hpp): caught by nothing but the comparison with the Python machine. It breaks no promise that the
#: explorer or the fuzzer checks, and refuses what it has to refuse. The long test says what is missing here.
NO_PROMISE: dict[tuple[str, str, str], str] = {
    ("Machine::Machine", "arrived_ = schedule_.begin - 1", "deleted"): FIRST_STAMPS,
    ("Machine::Machine", "stamp_ = oldest_ = arrived_", "deleted"): FIRST_STAMPS,
    ("Machine::Machine", "oldest_ = arrived_", "deleted"): FIRST_STAMPS,
    ("Machine::retract", "stamp_ = kNone", "deleted"): STAMP,
    ("Machine::start", "stamp_ = oldest_ = kNone", "deleted"): STAMP,
    ("Machine::finish", "activated_ = std::max(activated_, version)", "deleted"): ARRIVES_ANYWAY,
    ("Machine::finish", "std::max(activated_, version)", "min"): ARRIVES_ANYWAY,
    ("Machine::restore", "*field = *value++", "deleted"): "the explorer and the fuzzer copy machines, and restore none",
    ("Machine::activates", "version <= activated_", "boundary"): SENT_AGAIN,
    ("Machine::tell", "version < solo_from_", "negated"): ACTIVATED_BEFORE,
    ("Machine::tell", "version < solo_from_", "false"): ACTIVATED_BEFORE,
    ("Machine::tell", "solo_from_ == kNone || version < solo_from_", "true"): ACTIVATED_BEFORE,
    ("Machine::tell", "told <= version", "true"): ACTIVATED_BEFORE,
    ("Machine::tell", "told <= version", "negated"): ACTIVATED_BEFORE,
    ("Machine::tell", "told <= version", "boundary"): SENT_AGAIN,
    ("Machine::tell", "told != kNone && told <= version", "false"): SENT_AGAIN,
    ("Machine::tell", "told = version", "deleted"): SENT_AGAIN,
    ("Machine::complete", "merge_at_ = kNone", "deleted"): "versions only grow, so none that is executed later is this one",
    (
        "Machine::complete",
        "result_ = kNone",
        "deleted",
    ): "in place: live has the same buffer, and before the next start nobody is late",
    **{("Machine::resident", "resident_", kind): ASKED_BY_OTHERS for kind in ("negated", "true", "false")},
    **{("Machine::closed", "closed_", kind): ASKED_BY_OTHERS for kind in ("negated", "true", "false")},
    **{("Machine::fresh", "fresh_ != 0", kind): ASKED_BY_OTHERS for kind in ("negated", "true", "false")},
    ("Machine::buffers_of", "resident", "true"): "a buffer more than needed is never taken: the lowest free one is",
}

#: Of wagma/core/protocol.py.
PYTHON: dict[tuple[str, str, str], str] = {
    ("Machine.activation", "version > self.activated", "boundary"): STARTED,
    ("Machine.done", "self.next_version > self.last", "boundary"): ALL_STARTED,
    ("Machine.done", "self.next_version > self.last", "true"): ALL_STARTED,
    ("Machine._tell", "version < self.solo_from", "boundary"): SAME,
}
