"""Which algorithm pays off on a cluster of 64 ranks with stragglers? Takes a few seconds on a laptop; needs neither MPI nor torch."""

import wagma

scenario = wagma.load_scenario("resnet50_imagenet", {"ranks": 64, "iterations": 50})
for delay_s in (0.0, 0.32, 0.64):
    results = wagma.simulate(scenario.replace({"imbalance.0.delay_s": delay_s}), ["wagma_sgd", "allreduce_sgd"])
    for result in results:
        print(f"delay {delay_s:4.2f} s  {result.algorithm:14s} {result.throughput:8.0f} {result.unit}/s")
