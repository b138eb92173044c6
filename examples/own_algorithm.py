"""An algorithm that is not part of wagma, for both worlds: WAGMA-SGD in which a late model counts less the longer ago the last sync was.

`import own_algorithm` registers it; then `wagma.simulate(scenario, "fading_sgd")` and `wagma.distribute(optimizer, model, "fading_sgd")`
have it. Its test is examples/test_own_algorithm.py. Started alone, python examples/own_algorithm.py says how fast it is.
"""

import wagma
from wagma.algorithms import Collectives, register
from wagma.core.effects import Allreduce, ApplyUpdate, Average, ComputeGradient, GroupAllreduce, Value


@register("fading_sgd", Collectives.GROUPED)
def fading_sgd(rank):
    """Fresh: W = sum / |G|. Late: W = (sum + w W') / (|G| + w), w = 1 / iterations since the sync."""
    since = 0
    for t in rank.iterations:
        since += 1
        yield ComputeGradient(t)
        yield ApplyUpdate(t)
        if rank.schedule.is_sync(t):
            yield Allreduce(t, Value.MODEL)
            since = 0
        else:
            outcome = yield GroupAllreduce(t, Value.MODEL)
            own_weight = (1 - outcome.fresh) / since
            yield Average(t, own_weight, outcome.group_length + own_weight)


if __name__ == "__main__":
    scenario = wagma.load_scenario("resnet50_imagenet", {"ranks": 16, "iterations": 50})
    for result in wagma.simulate(scenario, ["fading_sgd", "wagma_sgd", "allreduce_sgd"]):
        print(f"{result.algorithm:14s} {result.throughput:6.0f} {result.unit}/s, staleness {result.staleness_max}")
