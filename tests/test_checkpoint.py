"""Saved and gone on from: to the bit, on as many ranks or on others; refused where it cannot be."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("wagma._native")

from safetensors.torch import load_file  # noqa: E402

import wagma  # noqa: E402
from tests.checkpointing import Turns, bits, model_of, run  # noqa: E402
from wagma.errors import InputError, NotFinite, WagmaError  # noqa: E402
from wagma.real.checkpoints import files  # noqa: E402
from wagma.real.checkpoints.values import Encoder, decode  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402

CASES: dict[str, dict[str, Any]] = {
    "wagma": {"algorithm": "wagma_sgd", "group_size": 2, "sync_period": 4},
    "wagma resident": {"algorithm": "wagma_sgd", "group_size": 2, "sync_period": 4, "resident": True, "buffers": "local"},
    "wagma merge_once": {
        "algorithm": "wagma_sgd",
        "group_size": 2,
        "sync_period": 4,
        "merge_once": True,
        "optimizer_state": "average",
    },
    "wagma mixed": {"algorithm": "wagma_sgd", "group_size": 2, "sync_period": 4, "dtypes": "mixed"},
    "eager": {"algorithm": "eager_sgd", "sync_period": 4, "optimizer": torch.optim.AdamW},
    "local": {"algorithm": "local_sgd", "sync_period": 4, "optimizer": torch.optim.AdamW, "optimizer_state": "average"},
    "allreduce": {"algorithm": "allreduce_sgd", "sync_period": 4, "buffers": "broadcast"},
}


@pytest.mark.parametrize("case", CASES)
def test_bit_for_bit(case: str, tmp_path: Path) -> None:
    settings = CASES[case]
    whole = run(2, 12, folder=tmp_path, **settings)
    saved = run(2, 4, folder=tmp_path, save_at=(4,), **settings)
    resumed = run(2, 12, folder=tmp_path, resume=True, record=True, trace=tmp_path / "second.jsonl", **settings)
    trace = wagma.load_trace(tmp_path / "second.jsonl")
    assert (trace.header.begin, trace.schedule.begin, len(trace.iterations)) == (4, 4, 16)
    assert wagma.validate(trace) == []
    trace.header.begin = 0
    assert wagma.validate(trace) != []
    for rank in range(2):
        assert saved[rank] == {t: whole[rank][t] for t in saved[rank]}
        assert list(resumed[rank]) == list(range(4, 13))
        assert resumed[rank] == {t: whole[rank][t] for t in resumed[rank]}
    if case.startswith("wagma"):  # the ranks' models differ in between, and momentum does: there was something to restore
        assert whole[0][5]["0.weight"] != whole[1][5]["0.weight"]
    if CASES[case].get("optimizer_state") != "average" and case != "allreduce":
        assert any(whole[0][4][key] != whole[1][4][key] for key in whole[0][4] if key[0] != "l" and " " in key)


def test_again_and_again(tmp_path: Path) -> None:
    """A run that is stopped at each sync; what is kept; and what other runs have left in the folder stays."""
    settings = CASES["wagma"]
    run(2, 4, folder=tmp_path, save_at=(4,), **settings)
    other = wagma.find_checkpoint(tmp_path)
    assert other is not None
    whole = run(2, 16, folder=tmp_path / "other", save_at=(0, 4), **settings)
    (tmp_path / "000000-iteration-12").mkdir()  # of a killed save
    for until in (4, 8, 12, 16):
        ended = run(2, until, folder=tmp_path, save_at=(until,), resume=until > 4, **settings)
    for rank in range(2):
        assert ended[rank][16] == whole[rank][16]
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != "other")
    assert names == [other.name, "000004-iteration-12", "000005-iteration-16"]
    manifest = files.read_manifest(tmp_path / names[-1])
    assert manifest["run"] == files.read_manifest(tmp_path / names[-2])["run"] != files.read_manifest(other)["run"]


def plain_model(path: Path) -> dict[str, Any]:
    return dict(load_file(path / "model.safetensors"))


def test_the_model_is_a_plain_file(tmp_path: Path) -> None:
    history = run(2, 4, folder=tmp_path, save_at=(4,), **CASES["wagma"])
    path = wagma.find_checkpoint(tmp_path)
    assert path is not None
    model = model_of()
    model.load_state_dict(plain_model(path))
    assert bits(model) == {name: value for name, value in history[0][4].items() if " " not in name}


class Odd(torch.nn.Module):
    """Weights that are used twice, a buffer that no state_dict has, and something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.names = ["begin"]

    def get_extra_state(self) -> Any:
        return {"names": tuple(self.names)}

    def set_extra_state(self, state: Any) -> None:
        self.names = list(state["names"])


class Plain(Odd):
    """The same without that."""

    get_extra_state = torch.nn.Module.get_extra_state
    set_extra_state = torch.nn.Module.set_extra_state


def test_odd_models(tmp_path: Path) -> None:
    def program(comm: LocalCommunicator, resume: bool) -> Any:
        model = Odd()
        optimizer = wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, timeout_s=20)
        if resume:
            wagma.load_checkpoint(tmp_path, optimizer)
        else:
            model.names.append(f"rank {comm.rank}")
            model.seen.add_(comm.rank + 1)
            wagma.save_checkpoint(tmp_path, optimizer)
        optimizer.close()
        assert model.second.weight is model.first.weight
        return bits(model), model.names, model.seen.tolist()

    before = run_local(2, lambda comm: program(comm, resume=False))
    path = wagma.find_checkpoint(tmp_path)
    assert path is not None
    assert sorted(plain_model(path)) == ["first.bias", "first.weight", "second.bias", "seen"]
    assert run_local(2, lambda comm: program(comm, resume=True)) == before
    assert before[1][1:] == (["begin", "rank 1"], [2, 2])


def test_what_modules_keep_goes_into_a_compiled_model_and_out_of_one(tmp_path: Path) -> None:
    """torch.compile puts its own prefix before the names, at which nothing would be found."""
    models = {kind: Odd() for kind in ("saved", "loaded")}
    compiled = torch.compile(models["saved"], backend="eager")

    def go_on(comm: LocalCommunicator, model: Any) -> None:
        optimizer = wagma.distribute(torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm)
        with optimizer:
            wagma.load_checkpoint(tmp_path, optimizer)

    def program(comm: LocalCommunicator) -> None:
        with wagma.distribute(torch.optim.SGD(compiled.parameters(), lr=0.1), compiled, comm=comm) as optimizer:
            models["saved"].names.append("end")
            wagma.save_checkpoint(tmp_path, optimizer)
        go_on(comm, models["loaded"])

    run_local(1, program)
    assert models["loaded"].names == ["begin", "end"]
    bare = Plain()
    with pytest.raises(
        InputError, match=r"of another model: '_extra_state' is what one of their modules keeps, and this one has none"
    ):
        run_local(1, lambda comm: go_on(comm, bare))


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1), (1, 2)])
def test_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    history = run(before, 4, folder=tmp_path, save_at=(4,), algorithm="local_sgd", sync_period=4, buffers="local")

    def program(comm: LocalCommunicator) -> Any:
        model = model_of()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = wagma.distribute(
            torch.optim.SGD(trained, lr=0.3, momentum=0.9),
            model,
            "local_sgd",
            sync_period=4,
            buffers="local",
            comm=comm,
            timeout_s=20,
        )
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5, 7], gamma=0.5)
        saved = wagma.load_checkpoint(tmp_path, optimizer, state={"scheduler": scheduler})
        found = bits(model, optimizer)
        with optimizer:
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.full((6, 3), 1.0 + comm.rank)).square().mean().backward()
                optimizer.step()
        return saved, found, optimizer.iteration

    for rank, (saved, found, last) in enumerate(run_local(after, program)):
        assert (saved.iteration, saved.ranks, saved.extra["rank"], last) == (4, before, rank % before, 8)
        assert found == history[rank % before][4]


def test_values_come_back() -> None:
    shared = torch.arange(3)
    value = {
        "none": None, "flags": [True, False], "numbers": [0.1, -0.0, float("inf"), float("-inf"), 1 << 100, 5e-324], "text": "ü\n",
        "tuple": (1, [2, (3,)]), "set": {1, 2}, "counter": Counter({3: 2}), 4: {("a", 1): "b"}, "$": "dollar", "empty": [{}, (), []],
        "tensors": [torch.tensor(2.5, dtype=torch.bfloat16), torch.zeros(0, 3), torch.eye(3).t()[:, 1:], torch.tensor(True)],
        "shared": [shared, shared], "array": np.arange(4, dtype=np.int16), "number": np.float32(0.1),
    }  # fmt: skip
    encoder = Encoder()
    encoded = encoder.encode(value, "value")
    found = decode(json.loads(json.dumps(encoded, allow_nan=False)), encoder.tensors)
    for key in ("none", "flags", "text", "tuple", "set", "counter", 4, "$", "empty"):
        assert found[key] == value[key]
        assert type(found[key]) is type(value[key])
    assert [x.hex() if isinstance(x, float) else x for x in found["numbers"]] == [
        x.hex() if isinstance(x, float) else x for x in value["numbers"]
    ]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found["tensors"], value["tensors"], strict=True))
    assert found["shared"][0] is found["shared"][1]
    assert found["array"].dtype == np.int16
    assert found["array"].tolist() == [0, 1, 2, 3]
    assert found["number"] == np.float32(0.1)
    with pytest.raises(InputError, match=r"^extra\['loss'\]\['f'\]\[1\] is a function: a checkpoint holds None, bool"):
        Encoder().encode({"loss": {"f": [1, lambda: 1]}}, "extra")
    with pytest.raises(InputError, match=r"^extra\['names'\] is an array of <U1: a checkpoint holds numbers only"):
        Encoder().encode({"names": np.array(["a"])}, "extra")
    with pytest.raises(InputError, match=r"^x is a tensor of layout torch.sparse_coo: a checkpoint holds dense ones"):
        Encoder().encode(torch.eye(2).to_sparse(), "x")


def answers(ranks: int, attempt: Any) -> list[str]:
    """What `attempt(comm)` raised on each rank."""

    def program(comm: LocalCommunicator) -> str:
        try:
            attempt(comm)
        except WagmaError as error:
            return f"{type(error).__name__}: {error}"
        return "nothing was raised"

    return run_local(ranks, program)


def one_step(comm: LocalCommunicator, steps: int, **settings: Any) -> Any:
    model = torch.nn.Linear(3, 1)
    optimizer = wagma.distribute(
        torch.optim.SGD(model.parameters(), lr=0.1), model, comm=comm, timeout_s=20, watchdog_s=0, **settings
    )
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return optimizer


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "between syncs": (
        {"sync_period": 5}, 3,
        r"3 iterations are done, and the last one was no sync: a checkpoint is saved after one, next after 5 iterations",
    ),
    "never": ({"sync_period": "never"}, 1, r'sync_period = "never": a checkpoint is saved at a sync, and there is none'),
    "gossip": ({"algorithm": "d_psgd"}, 0, r"d_psgd has no syncs, .*; algorithms that have: .*wagma_sgd; or .*consolidated\(\)"),
    "ideal": ({"algorithm": "ideal"}, 0, r"ideal has no syncs"),
    "keep": ({"keep": 0}, 0, r"keep = 0: must be a whole number, at least 1, or None for all"),
    "state": ({"state": {"epoch": 3}}, 0, r"state\['epoch'\] is a int: must have state_dict and load_state_dict; values go into extra"),
    "list": ({"extra": [1]}, 0, r"extra is a list: must be a dict"),
    "extra": ({"extra": {"loss": print}}, 0, r"extra\['loss'\] is a builtin_function_or_method: a checkpoint holds"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_not_saved(case: str, tmp_path: Path) -> None:
    settings, steps, reason = REFUSED[case]
    ours = {key: settings[key] for key in ("keep", "state", "extra") if key in settings}

    def attempt(comm: LocalCommunicator) -> None:
        with one_step(comm, steps, **{key: value for key, value in settings.items() if key not in ours}) as optimizer:
            wagma.save_checkpoint(tmp_path / "run", optimizer, **ours)

    for text in answers(2, attempt):
        assert re.match(rf"InputError: rank 0: {reason}", text), text
        assert "\n" not in text
    assert not (tmp_path / "run").exists()


def test_ranks_that_do_not_agree(tmp_path: Path) -> None:
    def attempt(comm: LocalCommunicator) -> None:
        with one_step(comm, 0) as optimizer:
            if comm.rank == 2:
                with torch.no_grad():
                    next(iter(optimizer._parts.agreed.model.parameters())).add_(1)
            wagma.save_checkpoint(tmp_path, optimizer)

    for text in answers(3, attempt):
        assert re.match(
            r"InputError: rank 2 has iteration 0, the model \w+, keep = 2 .*; rank 0 has iteration 0, the model", text
        ), text
    assert not list(tmp_path.iterdir())

    def foreign(comm: LocalCommunicator) -> None:
        wagma.save_checkpoint(tmp_path, torch.optim.SGD([torch.zeros(1)]))  # type: ignore[arg-type]

    assert answers(1, foreign) == ["InputError: optimizer is a SGD: must be one that wagma.distribute has returned"]


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, lock = files.write, threading.Lock()

    def full(path: Path, content: bytes) -> None:
        with lock:
            if path.name == "rank-00001.json":
                raise OSError(28, "No space left on device", str(path))
        write(path, content)

    def attempt(comm: LocalCommunicator) -> None:
        with one_step(comm, 0) as optimizer:
            wagma.save_checkpoint(tmp_path, optimizer)

    monkeypatch.setattr(files, "write", full)
    for text in answers(2, attempt):
        assert re.match(r"WagmaError: rank 1: checkpoint: .*No space left on device: .*rank-00001.json'$", text), text
    assert not list(tmp_path.iterdir())  # what was written is gone
    monkeypatch.undo()
    assert answers(2, attempt) == ["nothing was raised"] * 2


class Failing:
    """An object of the program's, which fails on one rank alone."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rank != 1 else {}["of two\nlines"]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def test_what_a_programs_own_class_raises_is_heard_of_by_all(tmp_path: Path) -> None:
    """Else the other ranks wait for that one until their limit."""

    def attempt(comm: LocalCommunicator) -> None:
        with one_step(comm, 0) as optimizer:
            wagma.save_checkpoint(tmp_path, optimizer, state={"mine": Failing(comm.rank)})

    assert answers(3, attempt) == [r"InputError: rank 1: state['mine'].state_dict(): KeyError: 'of two\nlines'"] * 3
    assert not list(tmp_path.iterdir())


def test_only_at_a_moment_at_which_the_model_is_the_ranks_own(tmp_path: Path) -> None:
    def saved(comm: LocalCommunicator) -> None:
        with one_step(comm, 1, sync_period=1) as optimizer:
            wagma.save_checkpoint(tmp_path, optimizer)

    def save_inside(comm: LocalCommunicator) -> None:
        with one_step(comm, 1, sync_period=1) as optimizer, optimizer.consolidated():
            wagma.save_checkpoint(tmp_path, optimizer)

    def load_inside(comm: LocalCommunicator) -> None:
        with one_step(comm, 0, sync_period=1) as optimizer, optimizer.consolidated():
            wagma.load_checkpoint(tmp_path, optimizer)  # what it loads would be undone at the end

    def load_after_close(comm: LocalCommunicator) -> None:
        with one_step(comm, 0, sync_period=1) as optimizer:
            pass
        wagma.load_checkpoint(tmp_path, optimizer)

    def save_after_failure(comm: LocalCommunicator) -> None:
        optimizer = one_step(comm, 1, sync_period=1, check_finite=True)
        next(iter(optimizer._parts.agreed.model.parameters())).grad.fill_(float("nan"))
        with pytest.raises(NotFinite):
            optimizer.step()  # the model is updated, and averaged with nobody's
        wagma.save_checkpoint(tmp_path, optimizer)

    assert answers(2, saved) == ["nothing was raised"] * 2
    for attempt, ranks, reason in (
        (save_inside, 2, r"save_checkpoint: called inside consolidated\(\)"),
        (load_inside, 2, r"load_checkpoint: called inside consolidated\(\)"),
        (load_after_close, 2, r"load_checkpoint: called after close"),
        (save_after_failure, 1, r"save_checkpoint: a step has failed, and the model stands in the middle of iteration 1"),
    ):
        for text in answers(ranks, attempt):
            assert re.match(rf"InputError: rank 0: {reason}", text), text
    assert len(list(tmp_path.iterdir())) == 1


def test_the_names_of_new_folders_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is on the disk in a folder whose name is not is lost with the power."""
    settled: list[Path] = []
    settle = files.settle
    monkeypatch.setattr(files, "settle", lambda folder: (settled.append(folder), settle(folder))[1])
    path = files.begin(tmp_path / "a" / "b", 7)
    assert path.is_dir()
    assert settled == [tmp_path / "a", tmp_path, tmp_path / "a" / "b"]


@pytest.mark.parametrize("resident", [False, True])
def test_arrays_go_on(resident: bool) -> None:
    """GroupAllreduce(begin=...): of a numpy program that has saved its model at a sync."""

    def program(comm: LocalCommunicator, turns: Turns, begin: int, until: int, first: Any) -> dict[int, bytes]:
        history = {}
        with wagma.GroupAllreduce(comm, first.copy(), 2, 4, begin=begin, resident=resident, timeout_s=20) as collective:
            for t in range(begin, until):
                with turns.turn(t - begin, comm.rank):
                    collective.model[:] += np.float32(0.1) * (t + 3 * comm.rank)
                    if (t + 1) % 4:
                        collective.average()
                if (t + 1) % 4 == 0:
                    assert collective.average().synced
                history[t + 1] = collective.model.tobytes()
        return history

    def turned(*arguments: Any) -> list[dict[int, bytes]]:
        turns = Turns(2)
        return run_local(2, lambda comm: program(comm, turns, *arguments))

    whole = turned(0, 12, np.zeros(5, np.float32))
    second = turned(4, 12, np.frombuffer(whole[0][4], np.float32))
    assert second == [{t: found for t, found in rank.items() if t > 4} for rank in whole]
    assert whole[0][6] != whole[1][6]
    with pytest.raises(InputError, match=r"^rank 0: begin = -1: must be a whole number from 0 to"):
        run_local(1, lambda comm: wagma.GroupAllreduce(comm, np.zeros(1), begin=-1))
