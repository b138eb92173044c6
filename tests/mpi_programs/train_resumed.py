"""A scenario trained in one go, and stopped in its middle and gone on with: both say the digests of all models after that."""

import sys
from pathlib import Path

from mpi4py import MPI

import wagma
from wagma.real.checkpoints.run import Saving
from wagma.real.train import train

comm, folder = MPI.COMM_WORLD, Path(sys.argv[1])


def scenario(algorithm: str, iterations: int, **changes: object) -> wagma.Scenario:
    table = {"ranks": comm.size, "iterations": iterations, "algorithm.sync_period": 4, "imbalance": []}
    if algorithm == "local_sgd":
        table["algorithms.local_sgd.sync_period"] = 4
    return wagma.load_scenario("digits", table | changes)


for algorithm in ("allreduce_sgd", "local_sgd"):
    saving = Saving(folder / algorithm, every=4)
    whole = train(scenario(algorithm, 12), algorithm, comm)
    first = train(scenario(algorithm, 8), algorithm, comm, saving=saving)
    second = train(
        scenario(algorithm, 12), algorithm, comm, saving=Saving(folder / algorithm, every=1, resume=folder / algorithm)
    )
    if whole is not None and first is not None and second is not None:
        assert wagma.validate(whole, first, second) == []
        assert [second.header.begin, second.schedule.begin] == [8, 8]
        digests = [{(a.rank, a.iteration): a.model_digest for a in trace.iterations} for trace in (whole, first, second)]
        assert sorted(digests[1].keys() | digests[2].keys()) == sorted(digests[0])
        assert digests[1] | digests[2] == digests[0]
        assert second.header.score == whole.header.score is not None
        second.header.begin = 0
        assert wagma.validate(second) != []  # a trace that does not say where it begins lacks iterations
        print(f"{algorithm}: the same {len(digests[2])} models")
problem = None
for iterations, changes in ((16, {"training.learning_rate": 0.5}), (12, {})):
    try:
        train(scenario("local_sgd", iterations, **changes), "local_sgd", comm, saving=Saving(resume=folder / "local_sgd"))
    except wagma.InputError as error:
        problem = str(error)
    print(f"rank {comm.rank}: {problem}", flush=True)
