"""The tests' float64 references as a peer. They are not in the installed package."""

from typing import Any

import numpy as np

from jaxopt_keras.language.options import Options
from jaxopt_keras.language.rule import Rule, fields_of
from jaxopt_keras.parity.cases import Case, Terms
from jaxopt_keras.parity.histories import History
from jaxopt_keras.parity.peer import Absent, load, name_of


class Oracle:
    """The tests' float64 references in NumPy, for both variants."""

    def __init__(self) -> None:
        try:
            self.loop = load("tests.oracles.loop")
        except Absent:
            raise Absent(
                "the float64 references (tests/oracles) are in a checkout of the project, not in the installed "
                "package: run this from the root of a checkout"
            ) from None
        self.version = f"float64 on NumPy {np.__version__}"

    def module(self, optimizer: type[Rule]) -> Any:
        name = name_of(optimizer)
        try:
            return load(f"tests.oracles.{name}")
        except Absent:
            raise Absent(f"there is no tests/oracles/{name}.py") from None

    def terms(self, optimizer: type[Rule]) -> list[Terms]:
        self.module(optimizer)
        names = {*fields_of(optimizer), *fields_of(Options), "schedule"}
        return [Terms(variant, names) for variant in optimizer.variants]

    def run(self, case: Case) -> History:
        return self.optimizer(case).run(case.grads)

    def optimizer(self, case: Case) -> Any:
        options = dict(case.options)
        excluded = options.pop("exclude_from_weight_decay", ())
        arguments = options | case.hyper | {"exclude": excluded, "variant": case.variant}
        return self.loop.Loop(self.module(case.optimizer), case.params, case.rate, **arguments)
