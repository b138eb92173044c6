"""For which GPUs the CUDA module is compiled, and what nvcc is told of it."""

from __future__ import annotations

import sys

import pytest
from native_programs import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import nvcc


@pytest.mark.parametrize(
    ("wanted", "known", "codes"),
    [
        ("", [70, 75, 80, 86, 89, 90], "sm_70 sm_80 sm_90 compute_70"),
        ("", [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121], "sm_75 sm_80 sm_90 sm_100 sm_120 compute_75"),
        ("90", [90], "sm_90 compute_90"),
        ("90; 80,75", [75, 80, 90], "sm_75 sm_80 sm_90 compute_75"),
        ("80-real", [80, 90], "sm_80"),
        ("80;90-real", [80, 90], "sm_80 sm_90"),
        ("80-real;90-virtual", [80, 90], "sm_80 compute_90"),
        ("90-virtual", [80, 90], "compute_90"),
    ],
)
def test_choice_of_architectures(wanted: str, known: list[int], codes: str) -> None:
    assert " ".join(nvcc.choose_codes(wanted, known)) == codes


@pytest.mark.parametrize(
    ("codes", "options"),
    [
        (["sm_80", "sm_90", "compute_80"], ["arch=compute_80,code=[sm_80,sm_90,compute_80]"]),
        (
            ["sm_80", "compute_80", "compute_90"],
            ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90,code=[compute_90]"],
        ),
        (["compute_90"], ["arch=compute_90,code=[compute_90]"]),
        (["sm_90"], ["arch=compute_90,code=[sm_90]"]),
    ],
)
def test_machine_code_comes_of_one_ptx(codes: list[str], options: list[str]) -> None:
    assert nvcc.code_options(codes) == [f"-gencode={option}" for option in options]


@pytest.mark.parametrize("wanted", ["35", "ninety", "60", "90a", "sm_90", "80;95"])
def test_architectures_that_cannot_be(wanted: str) -> None:
    with pytest.raises(nvcc.Unusable, match=r"^WAGMA_CUDA_ARCHITECTURES = \S+: must be of those that .* know, 80 90$"):
        nvcc.choose_codes(wanted, [35, 60, 80, 90])
