"""The optimizers, one file each. A new one needs its file, a line here, and an oracle in `tests/oracles`."""

from jaxopt_keras.rules.adabelief import AdaBelief as AdaBelief
from jaxopt_keras.rules.adadelta import Adadelta as Adadelta
from jaxopt_keras.rules.adafactor import Adafactor as Adafactor
from jaxopt_keras.rules.adagrad import Adagrad as Adagrad
from jaxopt_keras.rules.adam import Adam as Adam
from jaxopt_keras.rules.adamax import Adamax as Adamax
from jaxopt_keras.rules.adamw import AdamW as AdamW
from jaxopt_keras.rules.adan import Adan as Adan
from jaxopt_keras.rules.ademamix import AdEMAMix as AdEMAMix
from jaxopt_keras.rules.adopt import ADOPT as ADOPT
from jaxopt_keras.rules.ftrl import Ftrl as Ftrl
from jaxopt_keras.rules.grams import Grams as Grams
from jaxopt_keras.rules.lamb import Lamb as Lamb
from jaxopt_keras.rules.laprop import LaProp as LaProp
from jaxopt_keras.rules.lion import Lion as Lion
from jaxopt_keras.rules.muon import Muon as Muon
from jaxopt_keras.rules.nadam import Nadam as Nadam
from jaxopt_keras.rules.radam import RAdam as RAdam
from jaxopt_keras.rules.rmsprop import RMSprop as RMSprop
from jaxopt_keras.rules.schedule_free_adamw import ScheduleFreeAdamW as ScheduleFreeAdamW
from jaxopt_keras.rules.sgd import SGD as SGD
from jaxopt_keras.rules.signum import Signum as Signum
from jaxopt_keras.rules.stable_adamw import StableAdamW as StableAdamW
from jaxopt_keras.rules.yogi import Yogi as Yogi
