"""Layouts of matrices over a mesh of prime axes are the shardings from which they are read."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxopt_keras.engine.cores.layouts import Layout, find_layouts

P = PartitionSpec
SPECS = [P(), P(None, "a"), P(None, None, "b"), P("a", "b"), P(None, ("b", "a")), P("b", ("a", "c")), P("c", None, "a")]


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 2, 1), (4, 2, 1), (2, 2, 2), (1, 7, 1)], ids=str)
@pytest.mark.parametrize("backwards", [False, True])
def test_layouts(sizes, backwards):
    devices = np.array(jax.devices()[: np.prod(sizes)][:: -1 if backwards else 1]).reshape(sizes)
    shardings = [NamedSharding(Mesh(devices, ("a", "b", "c")), spec) for spec in SPECS]
    mesh, layouts = find_layouts(shardings, [(84, 168, 252)] * len(SPECS))
    for sharding, layout in zip(shardings, layouts, strict=True):
        assert sharding.is_equivalent_to(layout.sharding(mesh), 3)


def test_an_axis_that_the_devices_do_not_divide():
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:4]), ("a",)), P(None, "a"))
    mesh, layouts = find_layouts([sharding] * 2, [(1, 8, 3), (1, 6, 3)])
    assert layouts == [Layout(rows=mesh.axis_names), Layout()]
