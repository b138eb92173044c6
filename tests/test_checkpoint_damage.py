"""A checkpoint that is damaged, foreign or half written, and saves that are killed at every step."""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("wagma._native")

import wagma  # noqa: E402
from wagma.errors import InputError  # noqa: E402
from wagma.real.checkpoints import files  # noqa: E402
from wagma.real.local import LocalCommunicator, run_local  # noqa: E402

NAMES = ("manifest.json", "model.safetensors", *files.rank_files(0), *files.rank_files(1))


def wrapped(comm: LocalCommunicator, algorithm: str = "local_sgd", **settings: Any) -> tuple[Any, Any]:
    model = settings.pop("model", None) or torch.nn.Linear(3, 2)
    inner = settings.pop("optimizer", torch.optim.AdamW)(model.parameters(), lr=0.1)
    settings = {"sync_period": 2, "timeout_s": 20, "watchdog_s": 0} | settings
    return wagma.distribute(inner, model, algorithm, comm=comm, **settings), model


def step(optimizer: Any, model: Any, rank: int) -> None:
    optimizer.zero_grad()
    model(torch.full((2, 3), 1.0 + rank)).square().mean().backward()
    optimizer.step()


def content(model: Any) -> list[float]:
    return [x for p in model.parameters() for x in p.detach().reshape(-1).tolist()]


def save_at_two(folder: Path) -> list[float]:
    """A checkpoint of iteration 2 by two ranks; the model in it."""

    def program(comm: LocalCommunicator) -> list[float]:
        optimizer, model = wrapped(comm)
        with optimizer:
            step(optimizer, model, comm.rank)
            step(optimizer, model, comm.rank)
            wagma.save_checkpoint(folder, optimizer)
            return content(model)

    return run_local(2, program)[0]


# -- damage ---------------------------------------------------------------------------------------------------------------


def flip(path: Path, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def rewrite(**changes: Any) -> Callable[[Path], None]:
    """Another manifest, with a checksum that fits; None takes a key away."""

    def change(path: Path) -> None:
        manifest = json.loads((path / files.MANIFEST).read_text())
        for key, value in changes.items():
            manifest[key] = value
        manifest = {key: value for key, value in manifest.items() if value is not None}
        (path / files.MANIFEST).write_text(json.dumps(manifest | {"checksum": files.checksum(manifest)}))

    return change


def forge(name: str, content: bytes) -> Callable[[Path], None]:
    """Another content of a file, with a manifest that fits."""

    def change(path: Path) -> None:
        (path / name).write_bytes(content)
        said = json.loads((path / files.MANIFEST).read_text())["files"]
        rewrite(files=said | {name: files.sealed(path / name)})(path)

    return change


def damages(original: Path) -> dict[str, tuple[Callable[[Path], None], str]]:
    rng = random.Random(5)
    cases: dict[str, tuple[Callable[[Path], None], str]] = {}
    for name in NAMES:
        size = (original / name).stat().st_size
        manifest = name == "manifest.json"
        for length in (0, size // 2, size - 2 if manifest else size - 1):
            cases[f"{name} cut to {length}"] = (
                lambda path, name=name, length=length: (path / name).write_bytes((path / name).read_bytes()[:length]),
                "manifest.json is damaged: no JSON" if manifest else f"{name} has {length} bytes, was written with {size}",
            )
        for bit in sorted(rng.sample(range(8 * size), 12 if manifest else 4)):
            reason = (
                "manifest.json (is damaged|is not of wagma|: format_version)" if manifest else f"{name} is damaged: SHA-256"
            )
            cases[f"{name} bit {bit}"] = (lambda path, name=name, bit=bit: flip(path / name, bit), reason)
        gone = "no complete checkpoint in it" if manifest else f"{name} cannot be read: No such file"
        cases[f"{name} gone"] = (lambda path, name=name: (path / name).unlink(), gone)
    cases |= {
        "foreign": (lambda path: (path / files.MANIFEST).write_text('{"epoch": 3}'), r"manifest.json is not of wagma: format = None"),
        "a list": (lambda path: (path / files.MANIFEST).write_text("[]"), "manifest.json is not of wagma: format = 'list'"),
        "newer": (rewrite(format_version=2), "format_version = 2: wagma .* wrote it, this one reads 1"),
        "no ranks": (rewrite(ranks=None), "ranks = None: must be of type int"),
        "names no file": (rewrite(files={}), r"manifest.json names no rank-0000\d.safetensors"),
        "files of another form": (rewrite(files={"rank-00001.json": 3}), "manifest.json: files has 'rank-00001.json' = 3: must be"),
        "shape of another form": (rewrite(model={"weight": ["float32", 3]}), "manifest.json: model has 'weight' = .'float32', 3.: must be"),
        "state of another form": (rewrite(state=[1]), "manifest.json: state has 1: must be names"),
        "far too late": (rewrite(iteration=1 << 70), "manifest.json: ranks = 2 and iteration = 1180591620717411303424: must be"),
        "deep": (forge("rank-00001.json", b"[" * 100_000), "RecursionError: maximum recursion depth exceeded"),
        "other values": (forge("rank-00001.json", b"{}"), "rank-00001.json cannot be read: KeyError: 'optimizer'"),
        "other algorithm": (
            rewrite(algorithm="wagma_sgd"), "it was saved with algorithm = 'wagma_sgd', this run has 'local_sgd'; consolidated",
        ),
        "other optimizer": (rewrite(optimizer="SGD"), "it has the state of SGD, the optimizer is AdamW"),
        "other state": (rewrite(state=["scheduler"]), "it was saved with state scheduler; given: nothing"),
        "no model": (rewrite(model={}), "of another model: tensor 'weight' is none in it, float32 of shape .2, 3. in this one"),
    }  # fmt: skip
    return cases


def test_damaged_ones_are_refused(tmp_path: Path) -> None:
    save_at_two(tmp_path / "good")
    original = next((tmp_path / "good").iterdir())
    cases = damages(original)
    for number, (damage, _) in enumerate(cases.values()):
        copy = tmp_path / f"case {number}" / original.name
        shutil.copytree(original, copy)
        damage(copy)

    def program(comm: LocalCommunicator) -> list[str]:
        optimizer, model = wrapped(comm)
        before, said = content(model), []
        for number in range(len(cases)):
            try:
                wagma.load_checkpoint(tmp_path / f"case {number}", optimizer)
                said.append("nothing was raised")
            except InputError as error:
                said.append(str(error))
            assert content(model) == before
        # Whatever was refused, nothing was changed.
        assert wagma.load_checkpoint(tmp_path / "good", optimizer).iteration == 2
        with optimizer:
            step(optimizer, model, comm.rank)
        return said

    texts = run_local(2, program, timeout_s=100)
    assert texts[0] == texts[1]
    for (case, (_, reason)), text in zip(cases.items(), texts[0], strict=True):
        assert re.match(rf"rank [01]: checkpoint .*{reason}", text), (case, text)
        assert "\n" not in text


def test_of_another_run(tmp_path: Path) -> None:
    save_at_two(tmp_path)

    def attempt(
        comm: LocalCommunicator, folder: Path = tmp_path, consolidated: bool = False, steps: int = 0, **settings: Any
    ) -> str:
        optimizer, model = wrapped(comm, **settings)
        try:
            with optimizer:
                for _ in range(steps):
                    step(optimizer, model, comm.rank)
                wagma.load_checkpoint(folder, optimizer, consolidated=consolidated)
                step(optimizer, model, comm.rank)
                return f"goes on with {optimizer.iteration}"
        except InputError as error:
            return str(error)

    (tmp_path / "empty").mkdir()
    (tmp_path / "left" / "000001-iteration-2").mkdir(parents=True)
    for expected, settings in (
        (
            r"rank 0: checkpoint .*: of another model: tensor 'weight' is float32 of shape \(2, 3\) in it, float32 of shape \(4, 3\)",
            {"model": (3, 4)},
        ),
        (r"rank 0: checkpoint .*: it has the state of AdamW, the optimizer is SGD", {"optimizer": torch.optim.SGD}),
        (r"rank 0: checkpoint .* sync_period = 2, this run has 4; consolidated=True goes on all the same", {"sync_period": 4}),
        (r"goes on with 3", {"sync_period": 4, "consolidated": True}),
        (r"goes on with 3", {"algorithm": "wagma_sgd", "consolidated": True}),
        (r"rank 0: 2 iterations are done: a checkpoint is loaded before the first step", {"steps": 2}),
        (r"rank 0: d_psgd has no syncs, and so no checkpoints", {"algorithm": "d_psgd"}),
        (r"rank 0: checkpoint .*nowhere: there is no such folder", {"folder": tmp_path / "nowhere"}),
        (r"rank 0: checkpoint .*empty: no complete checkpoint in it$", {"folder": tmp_path / "empty"}),
        (r"rank 0: checkpoint .*: no complete checkpoint in it \(1 that a save was killed in", {"folder": tmp_path / "left"}),
    ):

        def program(comm: LocalCommunicator, settings: Any = settings) -> str:
            own = {"model": torch.nn.Linear(*settings["model"])} if "model" in settings else {}
            return attempt(comm, **settings | own)

        texts = run_local(2, program)
        assert texts[0] == texts[1]
        assert re.match(expected, texts[0]), texts[0]


class Growing(torch.nn.Module):
    """With a table that may become another one on each rank, or go."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)
        self.register_buffer("table", torch.zeros(2))

    def forward(self, inputs: Any) -> Any:
        return self.layer(inputs)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ((5,), r"tensor 'table' is float32 of shape \(5,\) in it, float32 of shape \(2,\) in this one"),
        (
            (1,),
            r"tensor 'table' is float32 of shape \(1,\) in it, float32 of shape \(2,\) in this one",
        ),  # which copy_ would take
        (None, r"tensor 'table' is none in it, float32 of shape \(2,\) in this one"),
    ],
)
def test_a_buffer_of_another_shape_on_another_rank(own: tuple[int, ...] | None, reason: str, tmp_path: Path) -> None:
    """Each rank may have its own, and what the manifest says of rank 0's says nothing of it."""

    def program(comm: LocalCommunicator, resume: bool) -> str:
        optimizer, model = wrapped(comm, model=Growing())
        with optimizer:
            if resume:
                before = content(model)
                with pytest.raises(InputError) as caught:
                    wagma.load_checkpoint(tmp_path, optimizer)
                assert content(model) == before
                return str(caught.value)
            if comm.rank == 1:
                model.table = None if own is None else torch.ones(own)
            wagma.save_checkpoint(tmp_path, optimizer)
            return ""

    run_local(2, lambda comm: program(comm, resume=False))
    texts = run_local(2, lambda comm: program(comm, resume=True))
    assert texts[0] == texts[1]
    assert re.match(rf"rank 1: checkpoint .*rank-00001.safetensors: of another model: {reason}$", texts[0]), texts[0]


def test_a_folder_that_one_rank_may_not_look_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rank 0 looks; the others must not wait for it."""

    def locate(folder: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(files, "locate", locate)

    def program(comm: LocalCommunicator) -> str:
        optimizer, _ = wrapped(comm)
        with optimizer, pytest.raises(InputError) as caught:
            wagma.load_checkpoint(tmp_path, optimizer)
        return str(caught.value)

    texts = run_local(2, program)
    assert texts[0] == texts[1]
    assert re.match(r"rank 0: checkpoint .*: PermissionError: .*Permission denied", texts[0]), texts[0]
    assert "\n" not in texts[0]


# -- kills ----------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process were gone."""


class Fault:
    """Kills at one of the steps that change anything on disk: before it, after it, or in its middle."""

    CHANGES = ("make_folder", "write", "write_tensors", "rename", "settle", "remove", "remove_folder")

    def __init__(self, at: int, moment: str) -> None:
        self.at, self.moment = at, moment
        self.count = 0
        self.lock = threading.Lock()
        self.dead = False

    def around(self, name: str, change: Callable[..., None]) -> Callable[..., None]:
        def wrapper(*arguments: Any) -> None:
            with self.lock:
                if self.dead:
                    raise Killed  # all ranks die with the first one
                number, self.count = self.count, self.count + 1
                if number != self.at:
                    change(*arguments)
                    return
                self.dead = True
                if self.moment != "before":
                    self.half(name, change, *arguments)
                raise Killed

        return wrapper

    def half(self, name: str, change: Callable[..., None], *arguments: Any) -> None:
        if self.moment == "within" and name == "remove_folder":
            max(arguments[0].iterdir()).unlink()
            return
        change(*arguments)
        if self.moment == "within" and name in ("write", "write_tensors"):
            path = arguments[0]
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.slow
def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_at_two(tmp_path / "base")
    originals = {name: getattr(files, name) for name in Fault.CHANGES}

    def go_on(comm: LocalCommunicator, folder: Path) -> tuple[int, list[float], list[float]]:
        optimizer, model = wrapped(comm)
        saved = wagma.load_checkpoint(folder, optimizer)
        loaded = content(model)
        with optimizer:
            step(optimizer, model, comm.rank)
            step(optimizer, model, comm.rank)
            wagma.save_checkpoint(folder, optimizer, keep=1)
            return saved.iteration, loaded, content(model)

    def killed(fault: Fault, folder: Path) -> int:
        shutil.copytree(tmp_path / "base", folder)
        shutil.copytree(next((tmp_path / "base").iterdir()), folder / "000000-iteration-0")  # left by a killed save
        originals["remove"](folder / "000000-iteration-0" / files.MANIFEST)
        for name, change in originals.items():
            monkeypatch.setattr(files, name, fault.around(name, change))
        try:
            run_local(2, lambda comm: go_on(comm, folder))
        except Killed:
            pass
        finally:
            for name, change in originals.items():
                monkeypatch.setattr(files, name, change)
        return fault.count

    steps = killed(Fault(-1, "before"), tmp_path / "whole")
    _, second, third = run_local(2, lambda comm: go_on(comm, tmp_path / "whole"))[0]
    found: dict[int, list[float]] = {2: first, 4: second}
    seen = {"before": [], "within": [], "after": []}
    for at in range(steps):
        for moment, iterations in seen.items():
            folder = tmp_path / f"{at} {moment}"
            killed(Fault(at, moment), folder)
            iteration, loaded, last = run_local(2, lambda comm, folder=folder: go_on(comm, folder))[0]
            assert loaded == found[iteration], (at, moment)
            assert last == {2: second, 4: third}[iteration]
            assert len(list(folder.iterdir())) == 1  # nothing is left of what was killed, and keep=1
            iterations.append(iteration)
            shutil.rmtree(folder)
    assert steps > 20
    for iterations in seen.values():  # the old one up to some step, from then on the new one
        assert iterations == sorted(iterations)
        assert set(iterations) == {2, 4}
