"""Coefficients of the Newton-Schulz iteration, by name.

A step is x <- a x + (b A + c A²) x with A = x xᵀ: an odd polynomial of the singular values. "Polar Express" names four
tables in the programs of the field; here each has the name of its origin.
"""

from typing import Any, NamedTuple

Triple = tuple[Any, Any, Any]


class Table(NamedTuple):
    """Coefficients (a, b, c) of each step; more steps repeat the last. The matrix is first divided by
    `safety` |x| + `epsilon` (None: as the rule says)."""

    rows: tuple[Triple, ...]
    safety: float = 1.0
    epsilon: float | None = None

    def steps(self, count: int) -> tuple[Triple, ...]:
        """Return the coefficients of `count` steps."""
        return (self.rows + self.rows[-1:] * count)[:count]


KELLER = (3.4445, -4.7750, 2.0315)
_RAW = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def _divided(rows: tuple[Triple, ...], by: float) -> tuple[Triple, ...]:
    """Return the polynomials of x / `by`, which stay bounded if rounding makes a singular value exceed 1."""
    return tuple((a / by, b / by**3, c / by**5) for a, b, c in rows)


TABLES = {
    # Keller Jordan 2024: steep at 0; singular values end between 0.7 and 1.2.
    "keller": Table((KELLER,)),
    # Jiacheng You 2025, in modded-nanogpt and Dion; optax's "dion". Five steps.
    "quintic": Table(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        )
    ),
    # Amsel et al. 2025 (arXiv:2505.16932): the best polynomials for singular values from 1e-3.
    "polar_express_raw": Table(_RAW),
    # Their algorithm 1: with a margin of 1 % in all steps but the last.
    "polar_express_paper": Table((*_divided(_RAW[:-1], 1.01), _RAW[-1])),
    # gram-newton-schulz 0.1.6: the first five, with a margin of 5 %.
    "polar_express_gram": Table(_divided(_RAW[:5], 1.05)),
    # modded-nanogpt and Dion: computed anew, for five steps and a margin of 2 %.
    "polar_express_nanogpt": Table(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        safety=1.02,
        epsilon=1e-6,
    ),
    # Grishina et al. 2025 (arXiv:2506.10935). Five steps.
    "cans": Table(
        (
            (8.4703, -25.1081, 18.6293),
            (4.1828, -3.1087, 0.5806),
            (3.9619, -2.9541, 0.5630),
            (3.2866, -2.4647, 0.5074),
            (2.2737, -1.6447, 0.4162),
        )
    ),
    # DeepSeek-V4: ten steps, of which the last two bring the singular values to 1.
    "deepseek_v4": Table((*[KELLER] * 8, (2.0, -1.5, 0.5))),
    # arXiv:2606.00371: five cubic steps, without the product A².
    "cubic": Table(
        (
            (3.3656576, -3.3420992, 0.0),
            (2.5744352, -1.4957376, 0.0),
            (2.5368962, -1.4312570, 0.0),
            (2.4418906, -1.2764040, 0.0),
            (2.2230472, -0.9630650, 0.0),
        )
    ),
    # Turbo-Muon (arXiv:2512.04632): four steps after normalization="aol"; of flash-newton-schulz, and of
    # Emerging-Optimizers, which has them from an earlier version.
    "turbo_flash": Table(
        (
            (4.6051, -9.6552, 5.6769),
            (4.7505, -6.0861, 2.1790),
            (2.7763, -2.3190, 0.5523),
            (2.4231, -2.2861, 0.8193),
        )
    ),
    "turbo_emerging": Table(
        (
            (4.0098, -7.0585, 2.4635),
            (3.4585, -5.5479, 2.5959),
            (2.7573, -3.2939, 1.4254),
            (2.7215, -3.0494, 1.3169),
        )
    ),
}


def steps_of(iteration: Any, own: Triple, count: int) -> tuple[Triple, ...]:
    """Return the coefficients of each step: of a table or of `own`, `count` steps; of a list, its own."""
    if isinstance(iteration, str):
        return TABLES[iteration].steps(count)
    return iteration if isinstance(iteration, tuple) else (own,) * count


def scale_and_epsilon(iteration: Any, epsilon: Any) -> tuple[float, Any]:
    """Return the factor of the norm by which a matrix is divided, and what is added to it."""
    table = TABLES[iteration] if isinstance(iteration, str) else Table(())
    return table.safety, epsilon if table.epsilon is None else table.epsilon


def read_iteration(value: Any) -> Any:
    """Validate `iteration`: return a name, a tuple of triples, a function, or None.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if value is None or callable(value):
        return value
    if isinstance(value, str):
        if value not in TABLES:
            raise ValueError(f"`iteration` must be one of {[*TABLES]}, or coefficients. Received: iteration={value!r}")
        return value
    is_table = isinstance(value, list | tuple) and all(isinstance(row, list | tuple) and len(row) == 3 for row in value)
    if not is_table or not all(isinstance(x, int | float) for row in value for x in row):
        raise TypeError(
            "`iteration` must be the name of a table, a list of (a, b, c) for each step, or a function of a matrix. "
            f"Received: iteration={value!r}"
        )
    return tuple(tuple(float(x) for x in row) for row in value)
