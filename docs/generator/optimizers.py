"""Generates the page of optimizers from the rules: a section for each, in reStructuredText."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp

import jaxopt_keras as jk
from docs.generator.docstrings import prose, restructured
from docs.generator.equations import End, symbol
from jaxopt_keras.language.meanings import description, limits, meanings
from jaxopt_keras.language.modifier import Modifier, routed
from jaxopt_keras.language.rule import Field, Rule, fields_of
from jaxopt_keras.optimizers import INNER, MODIFIERS, OF_LOSSES, RULES, parameters

GRAINS = {
    "element": "element-wise",
    "leaf": "needs the norm of its array",
    "matrix": "needs the shape of its array",
}
MATRIX = jax.ShapeDtypeStruct((1024, 4096), jnp.float32)  # sizes are those of its state
VECTOR = jax.ShapeDtypeStruct((4096,), jnp.float32)
MORE_AXES = "for arrays of more axes"


def page() -> str:
    own = [section(name, rule) for name, rule in (RULES | OF_LOSSES).items()]
    return "\n\n".join([*own, *(section_around(name, modifier) for name, modifier in MODIFIERS.items())])


def section_around(name: str, modifier: type[Modifier]) -> str:
    """Return the section of a modifier: its equations and its own hyperparameters."""
    function, known = modifier.__module__.rsplit(".", 1)[-1], {*fields_of(modifier)}
    own = {f.name for f in dataclasses.fields(modifier)}
    given = [p.replace(annotation=inspect.Parameter.empty) for p in parameters(modifier) if p.name in own]
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    said = str(inspect.Signature([*given, options]))[1:-1]
    head = [name, "-" * len(name), "", f".. py:class:: {name}({said})", "   :no-contents-entry:", ""]
    head += [f".. py:function:: {function}({said}) -> Kernel", "   :no-contents-entry:", ""]
    return "\n".join([*head, *restructured(description(modifier).splitlines(), known), *hyperparameters(modifier)])


def section(name: str, rule: type[Rule]) -> str:
    function = rule.__module__.rsplit(".", 1)[-1]
    head = [name, "-" * len(name), "", f".. py:class:: {name}({signature(rule)})", "   :no-contents-entry:", ""]
    head += [f".. py:function:: {function}({signature(rule)}) -> Kernel", "   :no-contents-entry:", ""]
    known = {*fields_of(rule), *rule.defaults}
    return "\n".join(
        [
            *head,
            *restructured(description(rule).splitlines(), known),
            *hyperparameters(rule),
            *slots(rule),
            *facts(rule),
        ]
    )


def signature(rule: type[Rule]) -> str:
    """Return the signature, with the common options as `**options`."""
    own = {f.name for f in dataclasses.fields(rule)} | set(rule.defaults)
    kept = [p.replace(annotation=inspect.Parameter.empty) for p in parameters(rule) if p.name in own]
    options = inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*kept, options]))[1:-1]


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table, or nothing if it has no rows."""
    if not rows:
        return []
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in [heads, *rows]:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]


def hyperparameters(rule: type[Rule]) -> list[str]:
    rows, known = [], {*fields_of(rule), *(() if issubclass(rule, Modifier) else rule.defaults)}
    for parameter in parameters(rule):
        field = fields_of(rule).get(parameter.name)
        if field and parameter.name not in ("variant", INNER):
            meaning = " ".join(meanings(rule)[parameter.name].split())
            name = f"`{parameter.name}`{sign(parameter.name)}"
            rows.append([name, prose(meaning, known), f"`{parameter.default!r}`", limits(field) or "see there"])
    return table(["hyperparameter", "meaning", "default", "values"], rows)


def sign(name: str) -> str:
    """Return the symbol of a hyperparameter in the equations, if it is not the name."""
    try:
        return f"  :math:`{symbol({'learning_rate': 'lr'}.get(name, name))}`"
    except End:
        return ""


def slots(rule: type[Rule]) -> list[str]:
    rows = []
    for name, slot in rule.slots().items():
        kind = "a sum or an iterate: exact" if slot.exact else "never negative" if slot.nonnegative else "of any sign"
        forms = "float32" if slot.exact else "any format of `state_dtype`"
        where = presence(rule, name)
        rows.append([f"`{name}`", "one axis" if where == MORE_AXES else shape(rule, name), kind, forms, where])
    return table(["slot", "shape", "values", "stored as", "exists"], rows)


def shape(rule: type[Rule], slot: str) -> str:
    rows, columns = MATRIX.shape
    named = {(): "one number", (rows,): "without the columns", (columns,): "without the rows"}
    named |= {MATRIX.shape: "the parameter's", (rows, rows): "rows x rows", (columns, columns): "columns x columns"}
    found = getattr(jax.eval_shape(rule().init, MATRIX), slot)
    return (
        "the parameter's" if found is None else named.get(found.shape, "blocks: " + " x ".join(map(str, found.shape)))
    )


def presence(rule: type[Rule], slot: str) -> str:
    """Return when a slot exists, by trying each switch of the rule."""
    on = {name: 0.9 if field.fixed == 0.0 else True for name, field in fields_of(rule).items() if _switch(field)}

    def has(values: dict[str, Any], p: Any) -> bool:
        return getattr(jax.eval_shape(routed(rule(**values), "", p).init, p), slot, None) is not None

    where = [p for p in (MATRIX, VECTOR) if has(on, p)]
    if not where:
        return MORE_AXES
    if len(where) == 1:
        return "for matrices" if where == [MATRIX] else "for other arrays"
    off = {name: 0.0 if field.fixed == 0.0 else False for name, field in fields_of(rule).items() if _switch(field)}
    needed = [name for name in on if not has(on | {name: off[name]}, MATRIX)]
    return "with " + " and ".join(f"`{name}`" for name in needed) if needed else "always"


def _switch(field: Field) -> bool:
    return bool in field.types or field.fixed == 0.0


def facts(rule: type[Rule]) -> list[str]:
    def size(**options: Any) -> str:
        made = jk.Kernel(rule(), jk.Options(engine="xla", **options))
        return f"{made.describe(MATRIX).bytes / MATRIX.size:.3g}"

    small = ", ".join(f"{size(state_dtype=form)} in {form}" for form in ("bfloat16", "int8", "int4"))
    lines = {
        "Grain": f"`{rule.grain}`: {GRAINS[rule.grain]}."
        + (' `sparse="lazy"` can touch single rows.' if rule.grain == "element" else ""),
        "Variants": ", ".join(f"`{variant}`" for variant in rule.variants) + ".",
        "State": f"{size()} bytes a parameter (a matrix of {MATRIX.shape[0]} x {MATRIX.shape[1]}); {small}.",
    }
    if not rule.complex_ok:
        lines["Complex parameters"] = "no."
    if rule.averaged is not Rule.averaged:
        lines["Evaluate"] = "the weights of `Kernel.averaged`, not the parameters."
    made = {variant: rule().bind({"variant": variant}).scalars() for variant in rule.variants}
    scalars = {variant: kept._fields for variant, kept in made.items() if kept is not None}
    for variant, kept in scalars.items():
        only = "" if len(scalars) == len(rule.variants) else f', with `variant="{variant}"`'
        lines["Kept once"] = " and ".join(f"`{name}`" for name in kept) + f", for all arrays{only}."
    return [f":{name}: {text}" for name, text in lines.items()] + [""]
