"""What the start of a rank costs: nothing is imported that `wagma train` makes no use of, and what stands in for it gives the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wagma.scenario import load
from wagma.workloads import images
from wagma.workloads.images import load_images, stratified

pytest.importorskip("torch")

import torch

from wagma.workloads import make, optimizers

#: A second of a core and more each, with all that they import; the optimizers' tests say why torch._dynamo is hard to leave out.
SPARED = ("torch._dynamo", "sklearn", "scipy.stats", "pandas", "matplotlib", "sympy", "pyarrow", "tensorboard")

TRAIN = f"""
import sys
from wagma.real.local import run_local
from wagma.real.train import train
from wagma.scenario import load
changes = {{"ranks": 2, "iterations": 2, "algorithm.sync_period": 2}}
for more in ({{}}, {{"training.optimizer": "adamw", "training.momentum": 0.0}}):
    run_local(2, lambda comm: train(load("digits", changes | more), "wagma_sgd", comm))
print([name for name in {SPARED!r} if name in sys.modules])
"""


@pytest.mark.slow
def test_training_imports_nothing_it_makes_no_use_of() -> None:
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_images_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    found = load_images()
    # Of a version that has its file elsewhere, scikit-learn's own function is asked.
    monkeypatch.setattr(images, "FILE", Path("nowhere.csv.gz"))
    for read, read_labels in (found, load_images()):
        assert (read.dtype, read_labels.dtype) == (pixels.dtype, labels.dtype)
        np.testing.assert_array_equal(read, pixels)
        np.testing.assert_array_equal(read_labels, labels)


@pytest.mark.parametrize(("share", "seed"), [(0.2, 0), (0.2, 1), (0.35, 7), (0.5, 3)])
def test_the_held_out_images_are_those_of_scikit_learn(share: float, seed: int) -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    _, labels = load_images()
    # The digits, and labels whose parts round alike, where lots decide.
    for given in (labels, np.repeat(np.arange(8), 11), np.arange(90) % 9 // 2):
        expected = selection.train_test_split(np.arange(len(given)), test_size=share, stratify=given, random_state=seed)
        for mine, other in zip(stratified(given, share, seed), expected, strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize(
    ("mine", "other", "options"),
    [
        (optimizers.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (optimizers.AdamW, torch.optim.AdamW, {"lr": 0.01}),
    ],
)
def test_workloads_optimizers_are_torchs(
    mine: type[torch.optim.Optimizer], other: type[torch.optim.Optimizer], options: dict[str, float]
) -> None:
    """Equal bits, hooks that run, states that either one loads."""
    digits = make(load("digits", {"ranks": 2}))
    models, called = (digits.model(), digits.model()), []
    pair = [kind(model.parameters(), **options) for kind, model in zip((mine, other), models, strict=True)]
    pair[0].register_step_post_hook(lambda *_: called.append("step"))
    for iteration in range(6):
        if iteration == 3:  # each goes on from the other's state
            first, second = (optimizer.state_dict() for optimizer in pair)
            pair[0].load_state_dict(second)
            pair[1].load_state_dict(first)
        for model, optimizer in zip(models, pair, strict=True):
            optimizer.zero_grad()
            digits.stream(0).loss(model, iteration).backward()
            optimizer.step()
        for own, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert own.grad is not None
            assert torch.equal(own, theirs)
    assert called == ["step"] * 6
    assert [type(optimizer).__name__ for optimizer in pair] == [other.__name__] * 2  # which checkpoints are named after
    pair[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    assert pair[0].param_groups[1]["lr"] == options["lr"]
