"""Modifiers, rules around rules, one file each. A new one needs its file and a line here."""

from jaxopt_keras.rules.modifiers.adaptive_clip import AdaptiveClip as AdaptiveClip
from jaxopt_keras.rules.modifiers.asam import ASAM as ASAM
from jaxopt_keras.rules.modifiers.cautious import Cautious as Cautious
from jaxopt_keras.rules.modifiers.cautious_decay import CautiousDecay as CautiousDecay
from jaxopt_keras.rules.modifiers.centralized import Centralized as Centralized
from jaxopt_keras.rules.modifiers.hyperball import Hyperball as Hyperball
from jaxopt_keras.rules.modifiers.lookahead import Lookahead as Lookahead
from jaxopt_keras.rules.modifiers.mars import Mars as Mars
from jaxopt_keras.rules.modifiers.noisy import Noisy as Noisy
from jaxopt_keras.rules.modifiers.ortho_grad import OrthoGrad as OrthoGrad
from jaxopt_keras.rules.modifiers.reduce_on_plateau import ReduceOnPlateau as ReduceOnPlateau
from jaxopt_keras.rules.modifiers.sam import SAM as SAM
from jaxopt_keras.rules.modifiers.scaled_rate import ScaledRate as ScaledRate
from jaxopt_keras.rules.modifiers.schedule_free import ScheduleFree as ScheduleFree
