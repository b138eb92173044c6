"""The model check of the execution in shared memory finds nothing in the kernel, and finds each defect that is put into it here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import native_programs
import pytest

NATIVE = native_programs.ROOT / "native"
NOT_CHECKED = ("reduce", "futex", "segment", "transport_local", "version")  # native/CMakeLists.txt leaves out the same

COUNTERS = "  desk.next_chunk.store(tag_);\n  desk.chunks_done.store(tag_);\n"
TARGET = "  desk.target.store(target, std::memory_order_relaxed);\n"
BEGUN = "  desk.begun.store(execution_.version);\n"
POST = "  mailbox.activated[activation.dimension].store(activation.version);\n"
RUNG = "  for (Version seen = rung.load(); seen < version && !rung.compare_exchange_weak(seen, version);) {\n  }\n"
RING, AFTER = "  mailbox.bell.ring();\n", "}\n\nvoid NodeRank::put_off"
CLEAR, TAKEN = "  due_.store(kNever);\n", "version) ring_for(mailbox, dimension, version);\n  }\n"
ENTRY, DUE = "  unrung_[dimension].store(version);\n", "  if (due < due_.load()) due_.store(due);\n"
SLEEP = "  own().bell.sleep(who, since, std::min(deadline, due));\n"
TOLD = "if (const std::int64_t due = due_.load(); due != kNever && due != std::exchange(told_due_, due)) "
REDUCE = "    reduce_chunk(*chunk);\n"
DONE = "    count_done(chunks_);  // reduce ends with a store fence\n"
COUNT = "  if ((done.fetch_add(1) & kLower) + 1 == parts) ring_members();\n"
HAND_OVER = "  if (work || transport_->wakes() != since) transport_->wake();\n"
UNLOCK = "  drive.unlock();\n"
DIRECT = "transport_node_direct.cpp"
FILL = "  copy(const_cast<std::byte*>(execution_.contribution)"
THROUGH = "    node_->desk(rank_).filled.store(tag_ | kPresent | kThrough | filled_);\n"
TELL = "  if (!told_) {\n    told_ = true;\n    ring_members();\n  }\n"
REST = "  while (filled_ < chunks_) fill_chunk();\n  ring_members();\n"
AVERAGED = "  if (averaged > 0) copy(execution_.target, "
DEVICE = "transport_device.cpp"
LANDED = "    count_done(chunks_);\n"
LAUNCHED = "  flights_.push_back({queue_->mark(), chunk});\n"
DECIDED = "  if (!std::exchange(decided_, true)) taking_ = takes_chunks();\n"
MET = "  if (!met_ && !(met_ = all_begun())) return {};\n"
NAP = "  if (flying_.load(std::memory_order_relaxed)) {\n"
SHOWN = "  desk.filled.store(tag_ | filled);\n"
STAMP = "  desk.stamp.store(execution_.stamp, std::memory_order_relaxed);\n"
LEFT, SWAPPED = "  node_->desk(rank_).left.store(1);\n", "  if (std::exchange(left_, true)) return;\n"
RESTORE = "      if (transport_->withdraw()) models_->take(model, transport_->buffer(live));\n"

# What is changed in which file of native/src: pairs of old and new text, one after the other; each old text stands there once.
MUTANTS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "chunks taken whatever the tag": ("node_rank.cpp", [("(seen & ~kLower) == tag_ && (seen", "(seen")]),
    "complete by the count alone": ("node_rank.cpp", [("(done & ~kLower) != tag_ || (done", "(done")]),
    "complete one chunk early": ("transport_node.cpp", [("!complete(chunks_)", "!complete(chunks_ - 1)")]),
    "read and then written instead of swapped": ("node_rank.cpp", [
        ("if (next.compare_exchange_weak(seen, seen + 1)) return static_cast<std::size_t>(seen & kLower);",
         "next.store(seen + 1); return static_cast<std::size_t>(seen & kLower);")]),
    "counters reset after begun": ("node_rank.cpp", [(COUNTERS, ""), (BEGUN, BEGUN + COUNTERS)]),
    "begun before the target is shown": ("node_rank.cpp", [(BEGUN, ""), (TARGET, BEGUN + TARGET)]),
    "counted before the data is written": ("transport_node.cpp", [(REDUCE, ""), (DONE, DONE + REDUCE)]),
    "the last chunk rings for nobody": ("node_rank.cpp", [(COUNT, "  done.fetch_add(1);\n")]),
    "begun only who is in this very version": ("node_rank.cpp", [
        ("begun.load() >= execution_.version; });", "begun.load() == execution_.version; });")]),
    "nobody rings when it is due": ("node_rank.cpp", [(SLEEP + "  ring_due(in_ns(Clock::now()));\n", SLEEP)]),
    "the progress thread sleeps past what is due": ("node_rank.cpp", [(SLEEP, "  own().bell.sleep(who, since, deadline);\n")]),
    "the progress thread is not told what is due": ("node_rank.cpp", [(TOLD, "if (false) ")]),
    "told once and never again": ("node_rank.cpp", [(TOLD, "if (due_.load() != kNever && std::exchange(told_due_, 0) != 0) ")]),
    "nothing due any more after the entries are taken": ("node_rank.cpp", [(CLEAR, ""), (TAKEN, TAKEN + CLEAR)]),
    "due before there is an entry": ("node_rank.cpp", [(ENTRY, ""), (DUE, DUE + ENTRY)]),
    "rung for before it is posted": ("node_rank.cpp", [
        (POST, ""), ("    ring_for(mailbox, activation.dimension, activation.version);\n", "    mailbox.bell.ring();\n  " + POST)]),
    "no note of what was rung for": ("node_rank.cpp", [(RUNG, "")]),
    "the note comes after the ring": ("node_rank.cpp", [(RUNG, ""), (RING + AFTER, RING + RUNG + AFTER)]),
    "rings are not counted": ("doorbell.cpp", [("  rings_.fetch_add(1);\n  futex_wake(rings_, who)", "  futex_wake(rings_, who)")]),
    "the progress thread is not rung for": ("doorbell.cpp", [("  if (who == 0) return false;", "  if (who != 1) return false;")]),
    "the progress thread does not look again": ("engine_drive.cpp", [("if (!application_wants_ && guarded_serve()) continue;", "")]),
    "the progress thread counts rings too late": ("engine_drive.cpp", [
        ("sleep(Sleeper::progress, since, ", "sleep(Sleeper::progress, transport_->wakes(), ")]),
    "woken before the lock is free": ("engine_drive.cpp", [(UNLOCK + HAND_OVER, HAND_OVER + UNLOCK)]),
    "a ring spent during the hand-over": ("engine_drive.cpp", [("work || transport_->wakes() != since", "work")]),
    "handed over without a look": ("engine_drive.cpp", [("= running_.has_value() || transport_->news();", "= false;")]),
    "the application does not look again": ("drive_until.hpp", [("if (!guarded_serve() && !ended()) transport_", "transport_")]),
    "filled before the copy": (DIRECT, [(FILL, "  node_->desk(rank_).filled.store(tag_ | kPresent | (filled_ + 1));\n" + FILL)]),
    "read one chunk before it is filled": (DIRECT, [("(word & kCount) > chunk", "(word & kCount) >= chunk")]),
    "present in whatever version": (DIRECT, [("(word & ~kLower) == tag_ && (word & kPresent)", "(word & kPresent)")]),
    "direct although one is late": (DIRECT, [("(word & ~kLower) == tag_ && (word & kPresent) != 0", "(word & ~kLower) == tag_")]),
    "taken before it is filled": ("node_rank.cpp", [("    if (!may_take(seen & kLower)) break;\n", "")]),
    "no ring for what is filled": (DIRECT, [(TELL, "")]),
    "no ring for whoever is through": (DIRECT, [(THROUGH + "    ring_members();\n", THROUGH)]),
    "a window without room": (DIRECT, [("filled_ < averaged_ + window_", "filled_ < averaged_")]),
    "gone before all are through": (DIRECT, [("!complete(execution_.members.size())", "!complete(1)")]),
    "through again and again": (DIRECT, [("averaged_ == chunks_ && !counted_", "averaged_ == chunks_")]),
    "the mean of a sync in the array only": (DIRECT, [(" || execution_.publishes_mean", "")]),
    "taken back before all is published": (DIRECT, [(REST, "  ring_members();\n")]),
    "taken back with what was averaged": (DIRECT, [(AVERAGED, "  if (averaged > execution_.count) copy(execution_.target, ")]),
    "taken back and still written": (DIRECT, [("  execution_.model = nullptr;\n", "")]),
    "the array is not restored": ("engine.cpp", [(RESTORE, "      transport_->withdraw();\n")]),
    "the array is not taken back": ("engine.cpp", [(RESTORE, "      models_->take(model, transport_->buffer(live));\n")]),
    "restored from what was never published": ("engine.cpp", [
        (RESTORE, "      transport_->withdraw();\n      models_->take(model, transport_->buffer(live));\n")]),
    "counted when it is launched": (DEVICE, [(LANDED, ""), (LAUNCHED, LAUNCHED + "  count_done(chunks_);\n")]),
    "a kernel's end is slept through": (DEVICE, [(NAP, "  if (false) {\n")]),
    "the absent take chunks, too": (DEVICE, [("  return !anybody;\n", "  return true;\n")]),
    "nobody takes chunks where nobody has come": (DEVICE, [("  return !anybody;\n", "  return false;\n")]),
    "decided before all have begun": (DEVICE, [(DECIDED, ""), (MET, DECIDED + MET)]),
    "present after begun": ("node_rank.cpp", [(SHOWN, ""), (BEGUN, BEGUN + SHOWN)]),
    "no ring when all have begun": (DEVICE, [("  if (met_) ring_members();\n", "")]),
    "the stamp is shown after begun": ("node_rank.cpp", [(STAMP, ""), (BEGUN, BEGUN + STAMP)]),
    "sums without a stamp": (DEVICE, [("if (reduction.begin + reduction.count == execution_.count) reduction", "if (false) reduction")]),
    "freed before all have left": (DEVICE, [("left.load() == 0 && !node_->is_gone(rank)) ", "left.load() == 2) ")]),
    "left before it is closed": (DEVICE, [(LEFT, ""), (SWAPPED, SWAPPED + LEFT)]),
    "left without a ring": (DEVICE, [("  node_->ring_all();\n", "")]),
    "published by nobody": ("engine_models.cpp", [("  if (!filled) models_->publish(buffer, own, version);\n", "")]),
}  # fmt: skip


def compiled(source: Path, into: Path, tree: Path) -> Path:
    target = into / f"{source.stem}.o"
    compiler = os.environ.get("CXX") or shutil.which("c++") or pytest.skip("no C++ compiler")
    folders = [f"-I{tree / folder}" for folder in ("include", "src", "model")]
    subprocess.run([compiler, "-std=c++20", "-O1", "-DWAGMA_MODEL_CHECK", *folders, "-c", source, "-o", target], check=True)
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checker's parts as they are, by the name of their source."""
    into = tmp_path_factory.mktemp("objects")
    sources = [*(NATIVE / "model").glob("*.cpp"), *(NATIVE / "src").glob("*.cpp")]
    checked = [
        s for s in sources if not s.stem.endswith("_mpi") and not (s.parent.name == "src" and s.stem.startswith(NOT_CHECKED))
    ]
    return {source.name: compiled(source, into, NATIVE) for source in checked}


def run(objects: dict[str, Path], into: Path) -> dict[str, str]:
    """What is wrong, by scenario."""
    compiler = os.environ.get("CXX") or "c++"
    subprocess.run([compiler, *objects.values(), "-o", into / "checker"], check=True)
    done = subprocess.run([into / "checker"], capture_output=True, text=True, check=False, timeout=300)
    if done.returncode < 0:  # a buffer that does not exist, say
        return {"the checker": f"ended by signal {-done.returncode}"}
    return {case["name"]: case["error"] for case in json.loads(done.stdout)["scenarios"] if case["error"]}


def test_nothing_in_the_quick_cases() -> None:
    status, said = native_programs.run("exchange_checker")
    assert [case for case in said["scenarios"] if case["error"]] == []
    assert status == 0
    assert sum(case["runs"] for case in said["scenarios"]) > 10_000
    direct = [case for case in said["scenarios"] if case["name"].startswith("direct") and "fails" not in case["name"]]
    assert direct
    assert all(case["averaged_directly"] > 0 for case in direct)
    assert not any(case["averaged_directly"] for case in said["scenarios"] if not case["name"].startswith("direct"))


@pytest.mark.long
@pytest.mark.timeout(3600)  # twenty minutes on one core that was shared
def test_nothing_in_the_long_cases() -> None:
    status, said = native_programs.run("exchange_checker", "--long")
    assert [case for case in said["scenarios"] if case["error"]] == []
    assert status == 0


@pytest.mark.long
@pytest.mark.timeout(300)  # the first one compiles all parts
@pytest.mark.parametrize("name", MUTANTS)
def test_a_defect_is_found(name: str, objects: dict[str, Path], tmp_path: Path) -> None:
    file, edits = MUTANTS[name]
    tree = tmp_path / "native"
    for folder in ("include", "src", "model"):
        shutil.copytree(NATIVE / folder, tree / folder)
    text = (tree / "src" / file).read_text()
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tree / "src" / file).write_text(text)
    changed = [s.name for s in (tree / "src").glob("engine*.cpp")] if file.endswith(".hpp") else [file]
    wrong = run(objects | {part: compiled(tree / "src" / part, tmp_path, tree) for part in changed}, tmp_path)
    assert wrong
