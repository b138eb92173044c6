"""The workloads that are uneven by themselves: their data, their bits in both worlds, their scores, and what is refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest

from wagma.errors import InputError, MissingDependencyError
from wagma.real.local import run_local
from wagma.results import summarize
from wagma.scenario import WORKLOADS, Scenario, load
from wagma.trace import Trace, parse_trace
from wagma.validate import validate

pytest.importorskip("torch")

import torch

from wagma import workloads
from wagma.algorithms import ALGORITHMS
from wagma.core.effects import Value
from wagma.real.train import train as train_for_real
from wagma.studies.learning import train
from wagma.workloads import registry
from wagma.workloads.corpus import LONGEST, SHORTEST, functions, split
from wagma.workloads.replica import Replica
from wagma.workloads.text import NOTHING, Text, _padded

UNEVEN = [
    "text",
    pytest.param("rl", marks=pytest.mark.skipif(not importlib.util.find_spec("gymnasium"), reason="no gymnasium")),
]


def small(name: str, **changes: Any) -> Scenario:
    quick: dict[str, Any] = {"ranks": 2, "iterations": 9, "algorithm.sync_period": 4, "training.stretch": 1.0}
    quick |= {"training.iterations": {}, "training.learning_rates": {}, "algorithms": {}}
    if name == "rl":
        quick["training.batch_size"] = 60
    return load(name, quick | {key.replace("__", "."): value for key, value in changes.items()})


def models(trace: Trace) -> list[tuple[int, int, str | None]]:
    return [(r.rank, r.iteration, r.model_digest) for r in trace.iterations]


def for_real(scenario: Scenario, algorithm: str, **options: Any) -> Trace:
    """A real run on threads: the same kernel and driver as of MPI ranks."""
    return next(t for t in run_local(scenario.ranks, lambda comm: train_for_real(scenario, algorithm, comm, **options)) if t)


def test_the_registry_has_the_workloads_of_scenarios() -> None:
    assert {*registry.REGISTRY, "none"} == set(WORKLOADS)


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("algorithm", ["allreduce_sgd", "local_sgd"])
def test_both_worlds_train_the_same_bits(name: str, algorithm: str) -> None:
    """Where nothing depends on timing: every model after every iteration, the work of each, and all scores."""
    scenario = small(name)
    simulated, real = train(scenario, algorithm, every=3), for_real(scenario, algorithm, every=3)
    assert validate(simulated.trace, real) == []
    assert models(simulated.trace) == models(real)
    assert len(set(models(real))) == 18
    assert [(r.rank, r.work) for r in simulated.trace.iterations] == [(r.rank, r.work) for r in real.iterations]
    assert [e.iteration for e in real.evaluations] == [0, 3, 6, 9]
    assert real.header.score == simulated.trace.header.score == simulated.curve[-1].score
    assert real.header.own_score == simulated.trace.header.own_score
    # Between syncs the ranks are at different places in virtual time; before the first iteration they are not.
    assert real.evaluations[0].score == simulated.curve[0].score


@pytest.mark.parametrize("name", UNEVEN)
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_trains_in_virtual_time(name: str, algorithm: str) -> None:
    trace = train(small(name, iterations=3), algorithm).trace
    assert validate(trace) == []
    assert len({digest for _, _, digest in models(trace)}) >= 3
    assert trace.header.score_name == workloads.score_of(small(name)).name
    assert (trace.header.score is None) == (algorithm == "ideal")


@pytest.mark.parametrize("name", UNEVEN)
def test_throughput_counts_what_was_done(name: str) -> None:
    trace = train(small(name), "allreduce_sgd").trace
    work = np.array([r.work for r in trace.iterations])
    assert len(set(work.tolist())) > 3, "the batches should differ in size"
    done = sum(sum(r.work or 0 for r in trace.iterations if r.rank == rank) for rank in range(2))
    seconds = max(r.return_ns for r in trace.iterations) / 1e9
    assert summarize(trace).throughput == pytest.approx(done / seconds, rel=0.2)  # ranks end within an iteration of each other


@pytest.mark.parametrize("name", UNEVEN)
def test_warming_up_leaves_nothing_behind(name: str) -> None:
    scenario = small(name)
    data = workloads.workload(scenario)
    cold, warm = Replica(data, scenario, 1), Replica(data, scenario, 1)
    warm.warm_up()
    for t in range(5):
        for replica in (cold, warm):
            replica.compute_gradient(t)
            replica.apply_update()
    assert np.array_equal(cold.flat(Value.MODEL).read(), warm.flat(Value.MODEL).read())


@pytest.mark.parametrize("name", UNEVEN)
def test_training_improves_the_score(name: str) -> None:
    """By much more than chance would."""
    scenario = small(name, iterations=60, training__batch_size=1000 if name == "rl" else 2)
    replica = Replica(workloads.workload(scenario), scenario, 0)
    before = replica.evaluate()
    for t in range(scenario.iterations if name == "text" else 4 * scenario.iterations):
        replica.compute_gradient(t)
        replica.apply_update()
    after = replica.evaluate()
    assert (before - after > 3) if name == "text" else (after - before > 60)


def test_a_trace_keeps_scores_and_work(tmp_path: Any) -> None:
    trace = for_real(small("text"), "wagma_sgd", every=4)
    trace.write(tmp_path / "t.jsonl")
    read = parse_trace((tmp_path / "t.jsonl").read_text().splitlines(), "t")
    assert (read.header, read.iterations, read.evaluations) == (trace.header, trace.iterations, trace.evaluations)
    assert summarize(read).scored_by == workloads.score_of(small("text"))


def test_traces_from_before_there_were_other_scores_are_read(tmp_path: Any) -> None:
    trace = train(load("digits", {"iterations": 2, "ranks": 2}), "allreduce_sgd").trace
    trace.write(tmp_path / "t.jsonl")
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    header, *rest = (line.partition(',"seal"')[0] + "}" for line in lines)  # which they had not either
    new = f'"score":{trace.header.score},"score_name":"accuracy","score_direction":"up","own_score":{trace.header.own_score}'
    assert new in header
    old = parse_trace([header.replace(new, f'"accuracy":{trace.header.score}'), *rest], "old")
    assert (old.header.accuracy, old.header.score) == (trace.header.score, trace.header.score)
    assert summarize(old).accuracy == trace.header.score
    nothing = parse_trace([header.replace(new, '"accuracy":null'), *rest], "old")
    assert nothing.header.score is None


# -- text -----------------------------------------------------------------------------------------------------------------


def test_a_module_is_split_into_its_functions() -> None:
    first = b"import x\n\n@decorated\ndef a(y):\n    def inner():\n        pass\n\n    return y\nz = 1\n"
    source = first + b"class C:\n    async def b(self):\n        pass\n\n    c = 2\n    def d(self): return 1\n"
    assert split(source) == [
        b"def a(y):\n    def inner():\n        pass\n\n    return y\n",
        b"    async def b(self):\n        pass\n",
        b"    def d(self): return 1\n",
    ]


def test_sequences_are_of_natural_and_uneven_lengths() -> None:
    lengths = np.array([len(one) for one in functions()])
    assert lengths.min() >= SHORTEST
    assert lengths.max() == LONGEST
    assert np.quantile(lengths, 0.9) > 8 * np.quantile(lengths, 0.1)


@pytest.fixture(scope="module")
def text() -> Text:
    data = workloads.workload(small("text", ranks=3, training__batch_size=4, training__batch_tokens=4096))
    assert isinstance(data, Text)
    return data


def test_an_epoch_has_every_sequence_once_in_batches_of_one_bucket(text: Text) -> None:
    plan = text._plan(0)
    everything = np.concatenate(plan)
    assert np.array_equal(np.sort(everything), np.arange(len(text._sequences)))
    for batch in plan:
        lengths = [text._sequences[i].size for i in batch]
        assert len(batch) <= 4
        assert len(batch) * max(lengths) <= 4096
        assert max(lengths) <= max(2 * min(lengths), 48)  # of similar length: little padding
    assert not np.array_equal(everything, np.concatenate(text._plan(1)))


def test_ranks_get_different_batches(text: Text) -> None:
    text._plan(0)
    batches = [text.batch(rank, t).inputs for t in range(4) for rank in range(3)]
    assert len({(tuple(one.shape), int(one.sum())) for one in batches}) == 12


def test_padding_counts_nowhere(text: Text) -> None:
    model = text.model()
    long, short = (next(one for one in text._sequences if one.size >= size)[:size] for size in (200, 40))
    both, alone = _padded([long, short]), _padded([short])
    assert both.tokens == 199 + 39
    assert int((both.targets == NOTHING).sum()) == 160
    with torch.no_grad():
        assert torch.allclose(model(both.inputs)[1, :39], model(alone.inputs)[0], atol=1e-5)


# -- rl -------------------------------------------------------------------------------------------------------------------


def test_an_episode_is_a_function_of_model_rank_and_iteration() -> None:
    pytest.importorskip("gymnasium")
    scenario = small("rl", training__batch_size=300)
    data = workloads.workload(scenario)
    model = data.model()
    losses = {}
    for rank in range(2):
        for _ in range(2):
            stream = data.stream(rank)
            found = [(float(stream.loss(model, t).detach()), stream.work) for t in range(12)]
            losses.setdefault(rank, []).append(found)
    assert losses[0][0] == losses[0][1]
    assert losses[0][0] != losses[1][0]
    works = [work for _, work in losses[0][0]]
    assert [w > 0 for w in works] == [t % 4 == 0 for t in range(12)]  # an episode, and three more epochs with it
    assert max(works) <= 300


def test_a_stream_goes_on_in_the_middle_of_an_episode() -> None:
    pytest.importorskip("gymnasium")
    scenario = small("rl")
    data = workloads.workload(scenario)
    model, first, second = data.model(), data.stream(0), data.stream(0)
    for t in range(2):
        first.loss(model, t)
    second.load_state_dict(first.state_dict())  # type: ignore[attr-defined]
    assert float(first.loss(model, 2).detach()) == float(second.loss(model, 2).detach())


def test_the_first_epoch_of_ppo_is_the_policy_gradient() -> None:
    """Before the policy has moved every ratio is 1 and nothing is clipped: the gradient is that of -log p * advantage."""
    pytest.importorskip("gymnasium")
    from wagma.workloads import rl

    data = workloads.workload(small("rl"))
    model, stream = data.model(), data.stream(0)
    stream.loss(model, 0)
    episode = stream._episode  # type: ignore[attr-defined]
    logits, values = model(episode.seen)
    log_all = torch.log_softmax(logits + episode.allowed, dim=-1)
    chosen = log_all.gather(1, episode.actions[:, None]).squeeze(1)
    assert torch.allclose(chosen, episode.log_probabilities, atol=1e-6)
    entropy = -(log_all.exp() * log_all).sum(-1)
    plain = (
        rl.VALUE_WEIGHT * (values - episode.returns).square() - chosen * episode.advantages - rl.ENTROPY_WEIGHT * entropy
    ).mean()
    model.zero_grad()
    plain.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    episode.loss(model).backward()
    for one, p in zip(expected, model.parameters(), strict=True):
        assert torch.allclose(one, p.grad, atol=1e-6)


# -- what is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("text", {"model.parameters": 5}, "model.parameters = 5: the workload text has"),
        ("text", {"work.unit": "steps"}, 'work.unit = "steps": the workload text has "tokens"'),
        ("text", {"training.batch_tokens": 100}, "training.batch_tokens = 100: must be at least 2048"),
        ("text", {"training.shards": "by_label"}, 'training.shards = "by_label": the workload text has "iid" only'),
        (
            "text",
            {"training.optimizer": "sgd", "training.decay": 0, "training.decay_from": 0, "training.numerics": "batched"},
            "batches of the workload text differ in size",
        ),
        ("text", {"training.momentum": 0.5}, 'training.momentum = 0.5: only with optimizer = "sgd", here "adamw"'),
        ("text", {"training.stretch": 2, "training.paced": True}, "training.stretch = 2.0: a rank is either paced"),
        ("text", {"training.decay": 0}, "training.decay_from = 0.7: only with training.decay above 0"),
        ("text", {"training.learning_rates.sgd": 1}, "training.learning_rates.sgd = 1: unknown key; allowed: .*wagma_sgd"),
        ("rl", {"training.batch_size": 5000}, "training.batch_size = 5000: must be at most 1000"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    if name == "rl":
        pytest.importorskip("gymnasium")
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        workloads.workload(load(name, changes))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None if name == "gymnasium" else object())
    with pytest.raises(MissingDependencyError, match=r"the workload rl needs gymnasium: pip install torch gymnasium"):
        workloads.workload(small("rl"))


def test_an_algorithm_may_have_its_own_learning_rate_and_iterations() -> None:
    own = {"training__learning_rates": {"wagma_sgd": 0.5}, "training__iterations": {"wagma_sgd": 3}}
    scenario = small("text", **own)
    tuned = scenario.tuned("wagma_sgd")
    assert (tuned.training.learning_rate, tuned.iterations) == (0.5, 3)
    assert tuned.tuned("wagma_sgd").table == tuned.table
    assert scenario.tuned("ideal") is scenario
    simulated, real = train(scenario, "wagma_sgd").trace, for_real(scenario, "wagma_sgd")
    for trace in (simulated, real):
        assert {r.iteration for r in trace.iterations} == {0, 1, 2}
        assert trace.scenario.training.learning_rate == 0.5


@pytest.mark.parametrize(
    ("decay_from", "expected"),
    [(0.0, [1.0, 0.9, 0.5, 0.1]), (0.5, [1.0, 1.0, 1.0, 0.2]), (0.8, [1.0, 1.0, 1.0, 0.5]), (1.0, [1.0, 1.0, 1.0, 1.0])],
)
def test_a_learning_rate_is_held_before_it_falls(decay_from: float, expected: list[float]) -> None:
    """In the iterations 0, 1, 5 and 9 of ten."""
    scenario = load("text", {"iterations": 10, "training.learning_rate": 1.0, "training.decay_from": decay_from})
    (replica,) = workloads.replicas(scenario, range(1))
    rates = []
    for iteration in (0, 1, 5, 9):
        replica.compute_gradient(iteration)
        rates.append(replica.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected)
