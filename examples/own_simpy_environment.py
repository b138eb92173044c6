"""A simulated cluster in a SimPy environment of one's own: two training jobs share a machine room whose power fails now and then.

Start it with python examples/own_simpy_environment.py. The environment counts seconds; the clusters follow it to the nanosecond.
"""

import random
from collections.abc import Iterator

import simpy

import wagma

SECONDS = 1_000_000_000  # a unit of this environment's clock, in nanoseconds

env = simpy.Environment()
storage = simpy.Resource(env, capacity=2)  # at most two ranks at a time read their data from it
running: list[wagma.Cluster] = []
draw = random.Random(3)


def load_data(_rank: int, iteration: int) -> simpy.Event | None:
    """Every tenth iteration a rank has to wait for its turn at the storage, and for its data."""

    def read() -> Iterator[simpy.Event]:
        with storage.request() as turn:
            yield turn
            yield env.timeout(0.4)

    return env.process(read()) if iteration % 10 == 0 else None


def train(algorithm: str) -> Iterator[simpy.Event]:
    """One job of the queue."""
    scenario = wagma.load_scenario("resnet50_imagenet", {"ranks": 8, "iterations": 40})
    began = env.now
    cluster = wagma.Cluster(env, scenario, algorithm, unit_ns=SECONDS, before_iteration=load_data)
    running.append(cluster)
    yield cluster.done
    running.remove(cluster)
    result = cluster.result
    stood_still = env.now - began - cluster.now_ns / SECONDS
    print(
        f"{algorithm:13s} {result.throughput:5.0f} images/s, done at {env.now:5.1f} s, {stood_still:4.1f} s of it without power"
    )


def fail() -> Iterator[simpy.Event]:
    """Now and then everything stands still."""
    while True:
        yield env.timeout(draw.expovariate(1 / 20))
        for cluster in running:
            cluster.pause()
        yield env.timeout(3)
        for cluster in running:
            cluster.resume()


def queue() -> Iterator[simpy.Event]:
    """One job after the other, on the same machines."""
    for algorithm in ("allreduce_sgd", "wagma_sgd"):
        yield env.process(train(algorithm))


env.process(fail())
env.run(until=env.process(queue()))
