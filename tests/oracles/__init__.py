"""Float64 NumPy references, one module per optimizer, each written from the formulas alone.

Every module has two functions on the arrays of one parameter:

    init(p, **hyper) -> slots
    update(g, p, s, t, lr, *, wd=None, variant="keras", path="", **hyper) -> (new p, new slots)

An optimizer with numbers from sums over all arrays has two more, and its `update` gets them as `common`:

    start(**hyper) -> common
    advance(common, grads, params, slots, t, lr, *, variant, weight_decays, **hyper) -> common

`t` is 1 at the first update, `lr` the learning rate of this update, `wd` the weight decay of this parameter (`None`:
no decay), `path` its name. `hyper` are the optimizer's own arguments with Keras's names and defaults, anything else is
ignored. `variant` is "keras" (Keras 3.15), "optax" (optax 0.2.8, the function of the same name) or "authors" (the
authors' own release, for an optimizer that Keras does not have). `loop` runs a whole optimizer.

A module may have `telling`: hyperparameters with which each of them shows in a few updates, for the laws; and `pinned`:
hyperparameters that are not drawn, for the comparison in float64.
"""

import pathlib

NAMES = tuple(sorted({path.stem for path in pathlib.Path(__file__).parent.glob("*.py")} - {"__init__", "loop"}))
