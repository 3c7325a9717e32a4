"""Converts the equations of docstrings to LaTeX.

Docstrings are read in terminals, so their equations are plain text: `m <- beta_1 m + (1 - beta_1) g²`. Text between
equations is kept as words. A space between factors is a product; `/` divides the factor before it by the factor after
it; a name directly before a parenthesis is a function; two spaces end an equation.
"""

import re
from collections.abc import Collection

GREEK = {"beta": r"\beta", "epsilon": r"\varepsilon", "mu": r"\mu", "rho": r"\rho"}
SYMBOLS = {
    "lr": r"\eta",
    "weight_decay": r"\lambda",
    "l1": r"\ell_1",
    "l2": r"\ell_2",
    "rows": r"\text{rows}",
    "columns": r"\text{columns}",
}
FUNCTIONS = {"clip", "max", "mean", "mean_columns", "mean_rows", "min", "norm", "rms", "sign", "sqrt"}
TOKEN = re.compile(
    r"(?P<gap>  +)"
    r"|(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)"
    r"|(?P<function>[a-z_]+)(?=\()"
    r"|(?P<name>[A-Za-z]\w*(?:(?<=_)\{[^}]*\})?)"
    r"|(?P<operator><-|[-+=/^(){},|'²ᵀ])",
    re.ASCII,
)
START = re.compile(
    r"(?<![\w'`.])(?:[A-Za-z]\w*(?:(?<=_)\{[^}]*\})?['²]? (?:<-|=) |(?P<function>max|min|sqrt)\()", re.ASCII
)


class End(Exception):
    """Raised at the end of an equation, or if the text is not an equation."""


def symbol(name: str, known: Collection[str] = ()) -> str:
    """Convert a name to LaTeX: a letter or Greek letter, also with an index, or the name of a hyperparameter.

    >>> symbol("beta_1"), symbol("mu_{t+1}"), symbol("lr"), symbol("rms_rate", {"rms_rate"})
    ('\\\\beta_1', '\\\\mu_{t+1}', '\\\\eta', '\\\\text{rms_rate}')

    Raises:
        End: for other words.
    """
    if name in SYMBOLS:
        return SYMBOLS[name]
    stem, _, index = name.partition("_")
    if (len(stem) == 1 or stem in GREEK) and re.fullmatch(r"\w?|\{.*\}", index):
        return GREEK.get(stem, stem) + (f"_{index}" if index else "")
    if name in known:
        return rf"\text{{{name}}}"
    raise End(name)


class Reader:
    """Reads one equation from `start` in `text`; `known` are names of several letters."""

    def __init__(self, text: str, start: int, known: Collection[str]) -> None:
        self.text, self.at, self.known = text, start, known
        self.depth = 0  # of parentheses

    def peek(self) -> tuple[str, str]:
        """Return the kind and text of the next token; both are empty at a gap or an unknown character."""
        single = re.compile(" (?! )").match(self.text, self.at)
        found = TOKEN.match(self.text, single.end() if single else self.at)
        if not found or found.lastgroup in (None, "gap"):
            return "", ""
        self.next = found.end()
        return str(found.lastgroup), found[0]

    def take(self, *tokens: str) -> str:
        """Consume and return the next token if it is one of `tokens`, else an empty string."""
        kind, token = self.peek()
        if not token or token not in tokens:
            return ""
        self.at = self.next
        return token

    def demand(self, token: str) -> None:
        if not self.take(token):
            raise End(token)

    def relation(self) -> str:
        left = self.factor()[0]
        arrow = {"<-": r"\leftarrow", "=": "="}[self.take("<-", "=")]
        return f"{left} {arrow} {self.sum()}"

    def sum(self) -> str:
        parts = [self.take("-") + self.product()]
        while sign := self.take("+", "-"):
            parts += [sign, self.product()]
        return " ".join(parts)

    def product(self) -> str:
        """Read a product; a fraction has the factors on both sides of its `/`."""
        factors = [[self.factor()]]  # each with its divisors
        while True:
            before = self.at, self.depth
            try:
                if self.take("/"):
                    factors[-1].append(self.factor())
                else:
                    factors.append([self.factor()])
            except End:
                self.at, self.depth = before
                break
        return r"\,".join(self.fraction(*factor) for factor in factors)

    def fraction(self, over: tuple[str, str], *under: tuple[str, str]) -> str:
        """Divide `over` by the product of `under`. A factor is a pair: with, and without parentheses around it."""
        if not under:
            return over[0]
        if self.depth:
            return " / ".join(whole for whole, _ in (over, *under))
        below = under[0][1] if len(under) == 1 else r"\,".join(whole for whole, _ in under)
        return rf"\frac{{{over[1]}}}{{{below}}}"

    def factor(self) -> tuple[str, str]:
        """Read a factor with its powers; return it with, and without the parentheses around it."""
        whole, bare = self.atom()
        while mark := self.take("'", "²", "ᵀ", "^"):
            if mark == "'":
                whole = bare = whole + "'"
                continue
            power = {"²": "2", "ᵀ": r"\top", "^": ""}[mark] or self.exponent()
            whole = bare = f"{{{whole}}}^{{{power}}}" if whole[-1] in "}'" else f"{whole}^{{{power}}}"
        return whole, bare

    def exponent(self) -> str:
        if not self.take("{"):
            return self.atom()[0]
        inside = self.sum()
        self.demand("}")
        return inside

    def atom(self) -> tuple[str, str]:
        kind, token = self.peek()
        if kind == "number":
            self.at = self.next
            mantissa, _, power = token.partition("e")
            number = rf"10^{{{power}}}" if mantissa == "1" and power else token
            return number, number
        if kind == "name":
            name = symbol(token, self.known)
            self.at = self.next
            return name, name
        if kind == "function" and token in FUNCTIONS:
            self.at = self.next
            function = self.function(token)
            return function, function
        if self.take("("):
            inside = ", ".join(self.until(")"))
            return f"({inside})", inside
        if self.take("|"):
            norm = rf"\lvert {self.until('|')[0]}\rvert "
            return norm, norm
        raise End(token)

    def until(self, close: str) -> list[str]:
        """Read the sums between commas, up to the closing parenthesis."""
        self.depth += 1
        inside = [self.sum()]
        while self.take(","):
            inside.append(self.sum())
        self.demand(close)
        self.depth -= 1
        return inside

    def function(self, name: str) -> str:
        self.demand("(")
        inside = ", ".join(self.until(")"))
        if name == "sqrt":
            return rf"\sqrt{{{inside}}}"
        head, _, index = name.partition("_")
        label = rf"\{head}" if head in ("max", "min") else rf"\operatorname{{{head}}}"
        return label + (rf"_{{\text{{{index}}}}}" if index else "") + f"({inside})"


def words(text: str) -> str:
    """Convert the words between equations. Single letters, except "a" and "I", are symbols."""
    said = re.split(r"(?<![\w'])([b-zA-HJ-Z])(?![\w'])", re.sub("^ {2,}| {2,}$", "", text.replace("`", "")))
    latex = "".join(part if i % 2 else rf"\text{{{part}}}" for i, part in enumerate(said) if part)
    return (r"\quad " if text.startswith("  ") else "") + latex + (r"\quad " if latex and text.endswith("  ") else "")


def pieces(text: str, known: Collection[str]) -> list[tuple[bool, str]]:
    """Split text into equations, as LaTeX (True), and the unchanged text between them (False)."""
    found, at = [], 0
    for start in START.finditer(text):
        if start.start() < at:
            continue
        reader = Reader(text, start.start(), known)
        try:
            latex = reader.product() if start["function"] else reader.relation()
            if reader.peek()[1] in ("+", "-", "/", "^", "=", "("):
                raise End("words follow")
        except End:
            continue
        found += [(False, text[at : start.start()]), (True, latex)]
        at = reader.at
    return [piece for piece in [*found, (False, text[at:])] if piece[1]]


def display(lines: list[str], known: Collection[str] = ()) -> str | None:
    """Convert lines to a block of equations; None if one of them has no equation.

    >>> print(display(["m <- beta_1 m + (1 - beta_1) g     v <- max(v, g²)", "p <- p - lr m / (sqrt(v) + epsilon)"]))
    \\begin{aligned}
    &m \\leftarrow \\beta_1\\,m + (1 - \\beta_1)\\,g\\quad v \\leftarrow \\max(v, g^{2}) \\\\
    &p \\leftarrow p - \\eta\\,\\frac{m}{\\sqrt{v} + \\varepsilon}
    \\end{aligned}
    """
    rows = []
    for line in lines:
        parts = pieces(line.strip(), known)
        if not any(is_equation for is_equation, _ in parts):
            return None
        rows.append("&" + "".join(text if is_equation else words(text) for is_equation, text in parts))
    return "\\begin{aligned}\n" + " \\\\\n".join(rows) + "\n\\end{aligned}"
