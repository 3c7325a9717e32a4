"""The six programs of `tests/arrivals` learn what the library learns that their users come from."""

import inspect
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.arrivals import from_equinox, from_keras, from_nnx, from_optax, from_tensorflow, from_torch

PROGRAMS = [from_optax, from_keras, from_tensorflow, from_torch, from_nnx, from_equinox]


@pytest.mark.usefixtures("jax_defaults")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.rpartition(".")[2])
def test_a_program_learns_what_it_did_elsewhere(program, tmp_path: Path):
    needs_folder = bool(inspect.signature(program.main).parameters) and program is not from_equinox
    ours, theirs = program.main(tmp_path) if needs_folder else program.main()
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs) >= 2
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__.rpartition(".")[2])
def test_a_program_is_short(program):
    assert 30 <= len(inspect.getsource(program).splitlines()) <= 90
