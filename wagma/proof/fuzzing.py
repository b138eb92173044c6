"""`wagma fuzz`: seeds through the C++ fuzzer (native/tools/fuzzer.hpp), a sample of them through the Python machines (`twins`) and the
simulator (`hostile`)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wagma
from wagma.errors import InputError
from wagma.proof import hostile, native_proof, twins

MOST_SEEDS = 2**62
COMMIT_LIMIT_S = 10.0

Progress = Callable[[int, int], None]


def commit() -> str:
    """Which wagma this is: the commit of the checkout that it is imported from, and whether it was changed; else the version."""
    root = Path(wagma.__file__).resolve().parent.parent
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        try:
            head = _output([*git, "rev-parse", "--short=12", "HEAD"])
            return head + ("-changed" if _output([*git, "status", "--porcelain", "--untracked-files=no"]) else "")
        except (OSError, subprocess.SubprocessError):
            pass  # no git, or none that reads this checkout
    return f"version {wagma.__version__}"


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMIT_LIMIT_S).stdout.strip()


@dataclass(frozen=True, slots=True)
class Failure:
    """What was found. world: "native", "twins" or "simulator". case: what the seed drew, shrunk_case: the smallest that fails like it.

    events: of the run that was found, up to the failure. trace: the shrunk run, a line each event (native: the last is where it fails,
    or the last before it is seen that nothing more happens). attempts: runs that shrinking took.
    """

    world: str
    seed: int
    violation: str
    case: str
    events: int
    shrunk_violation: str
    shrunk_case: str
    trace: tuple[str, ...]
    attempts: int


@dataclass(slots=True)
class Report:
    """What a range of seeds gave: `seeds` of them done, each twice; `simulated` of these in the simulator, too, each twice.

    counts: what the C++ runs met, one of each seed. digest: of all their events and outputs: the same wherever the same is run.
    """

    first: int
    seeds: int
    counts: dict[str, int]
    digest: str
    simulated: int = 0
    failure: Failure | None = None
    commit: str = field(default_factory=commit)

    def share(self, part: str, whole: str) -> float:
        """Of two counts."""
        return self.counts[part] / max(1, self.counts[whole])

    def as_table(self) -> dict[str, Any]:
        """For JSON."""
        failure = self.failure
        return {
            "result": "ok" if failure is None else "violation",
            "first": self.first,
            "seeds": self.seeds,
            "simulated": self.simulated,
            "commit": self.commit,
            "digest": self.digest,
            **self.counts,
            "failure": None if failure is None else {name: getattr(failure, name) for name in Failure.__slots__},
        }


def fuzz(
    first: int, seeds: int, simulate_every: int = 0, mutation: str = "none", progress: Callable[[str], Progress] | None = None
) -> Report:
    """Run the seeds from `first` on, up to the first failure; where all hold, those that `simulate_every` divides in the simulator.

    progress(label) gives what is called with (done, total) from then on. Raises InputError for a range or mutation that there is not,
    MissingDependencyError without the C++ module.
    """
    proof = native_proof()
    if seeds < 1 or first < 0 or first + seeds > MOST_SEEDS:
        raise InputError(f"seeds {first} to {first + seeds}: must be one or more, from 0 to {MOST_SEEDS}")
    if simulate_every < 0:
        raise InputError(f"--simulate-every {simulate_every}: must be at least 1, or 0 for none")
    if mutation not in proof.MUTATIONS:
        raise InputError(f"--mutate {mutation!r}: unknown; allowed: {', '.join(proof.MUTATIONS)}")
    show = progress("fuzzing") if progress else lambda _done, _total: None
    found = proof.fuzz(first, seeds, mutation, lambda done: show(done, seeds))
    report = Report(first, found["seeds"], found["counts"], found["digest"])
    if found["failure"] is not None:
        report.failure = Failure("native", **(found["failure"] | {"trace": tuple(found["failure"]["trace"])}))
        return report
    sample = range(-(-first // simulate_every) * simulate_every, first + seeds, simulate_every) if simulate_every else range(0)
    show = progress("simulating a sample") if progress else show
    for seed in sample:
        report.simulated += 1
        report.failure = simulate(seed)
        if report.failure is not None:
            return report
        show(report.simulated, len(sample))
    return report


def simulate(seed: int) -> Failure | None:
    """A seed in the Python machines and in the simulator; what is wrong, shrunk, of the machines up to where they differ."""
    if (differs := twins.difference(seed)) is not None:
        message, case = differs.message, differs.case
        return Failure("twins", seed, message, case, differs.events, message, case, differs.trace, 0)
    table, algorithm = hostile.scenario_of(seed)
    found = hostile.judge(table, algorithm)
    if found is None:
        return None
    small, verdict, attempts = hostile.shrink(table, algorithm, found)
    case, shrunk = hostile.text_of(table, algorithm), hostile.text_of(small, algorithm)
    return Failure("simulator", seed, found.message, case, len(found.lines), verdict.message, shrunk, verdict.lines, attempts)
