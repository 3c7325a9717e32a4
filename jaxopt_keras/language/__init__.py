"""The language of rules: hyperparameter types, slots, numerics, and the class `Rule`.

>>> from typing import NamedTuple
>>> import jax.numpy as jnp
>>> from jaxopt_keras.language import Decay, Rate, Rule, Signed, ema
>>> class Momentum(Rule):
...     learning_rate: Rate = 1e-3
...     beta: Decay = 0.9
...     class State(NamedTuple):
...         momentum: Signed
...     def init(self, p):
...         return self.State(jnp.zeros_like(p))
...     def update(self, g, p, s, at):
...         m = ema(s.momentum, g, self.beta)
...         return -at.lr * m, self.State(m)
"""

from jaxopt_keras.language.numerics import compute_dtype as compute_dtype
from jaxopt_keras.language.numerics import ema as ema
from jaxopt_keras.language.numerics import norm as norm
from jaxopt_keras.language.numerics import rms as rms
from jaxopt_keras.language.numerics import square as square
from jaxopt_keras.language.options import Options as Options
from jaxopt_keras.language.rule import Amount as Amount
from jaxopt_keras.language.rule import Clock as Clock
from jaxopt_keras.language.rule import Count as Count
from jaxopt_keras.language.rule import Decay as Decay
from jaxopt_keras.language.rule import Exact as Exact
from jaxopt_keras.language.rule import Momentum as Momentum
from jaxopt_keras.language.rule import NonNegative as NonNegative
from jaxopt_keras.language.rule import Number as Number
from jaxopt_keras.language.rule import Rate as Rate
from jaxopt_keras.language.rule import Rule as Rule
from jaxopt_keras.language.rule import Signed as Signed
from jaxopt_keras.language.rule import Slot as Slot
from jaxopt_keras.language.rule import Variant as Variant
