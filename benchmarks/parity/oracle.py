"""The tests' float64 references as a peer."""

from typing import Any

import numpy as np

from benchmarks.parity.cases import Case, Terms
from benchmarks.parity.histories import History
from benchmarks.parity.peer import Absent, load, name_of
from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule, fields_of
from tests.oracles import loop

NEWTON_SCHULZ = {"muon_a": 3.4445, "muon_b": -4.7750, "muon_c": 2.0315}  # other coefficients may diverge
WITHOUT = {"SOAP": {"clipvalue"}}  # of equal numbers, which it makes, rounding chooses the eigenvectors


class Oracle:
    """The float64 references of `tests/oracles` in NumPy, for both variants."""

    version = f"float64 on NumPy {np.__version__}"

    def module(self, optimizer: type[Rule]) -> Any:
        name = name_of(optimizer)
        try:
            return load(f"tests.oracles.{name}")
        except Absent:
            raise Absent(f"there is no tests/oracles/{name}.py") from None

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        names = {*fields_of(optimizer), *fields_of(Options), "schedule"} - WITHOUT.get(optimizer.__name__, set())
        pinned = {name: x for name, x in NEWTON_SCHULZ.items() if name in names}
        pinned |= getattr(self.module(optimizer), "pinned", {})
        return [Terms(variant, names, pinned) for variant in optimizer.variants]

    def run(self, case: Case) -> History:
        return self.optimizer(case).run(case.grads)

    def optimizer(self, case: Case) -> Any:
        options = dict(case.options)
        excluded = options.pop("exclude_from_weight_decay", ())
        arguments = options | case.hyper | {"exclude": excluded, "variant": case.variant}
        return loop.Loop(self.module(case.optimizer), case.params, case.rate, **arguments)
