"""Faults planted in the library, one line each, and the test that catches each.

    python -m tests.faults [--only N ...] [--write]

A test that cannot fail proves nothing. This program copies the project, checks that the tests named here pass there,
then plants one fault after the other and demands that its test fails. `--write` puts the table into `tests/README.md`.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "tests" / "README.md"
MARK = "<!-- faults -->"


class Fault(NamedTuple):
    """One changed line."""

    file: str  # in the package
    right: str  # a part of one line, which occurs once
    wrong: str
    meaning: str
    test: str  # a file in tests/, and arguments of pytest

    @property
    def command(self) -> str:
        return f"tests/{self.test}"

    @property
    def planted(self) -> str:
        text = (ROOT / "jaxopt_keras" / self.file).read_text()
        assert text.count(self.right) == 1, f"{self.file}: {self.right!r} occurs {text.count(self.right)} times"
        return text.replace(self.right, self.wrong)


def oracle(name: str) -> str:
    return f"rules/test_parity_oracles.py -k {name}"


def law(name: str, case: str = "") -> str:
    return f"laws/test_{name}.py" + (f" -k '{case}'" if case else "")


FAULTS = [
    # Rules
    Fault("rules/sgd.py", "inside * g if self.nesterov else v", "inside * g if False else v",
          "Nesterov's look ahead is missing", oracle("sgd-keras")),
    Fault("rules/rmsprop.py", "b = at.lr * g / jnp.sqrt(d)", "b = at.lr * g / (jnp.sqrt(n) + self.epsilon)",
          "epsilon outside the root", oracle("rmsprop-keras")),
    Fault("rules/adam.py", "root(peak + self.eps_root * correction) + epsilon", "root(peak + epsilon)",
          "epsilon inside the root", oracle("adam-keras")),
    Fault("rules/adam.py", "/ (1 - self.beta_1**at.t)", "",
          "no bias correction of the momentum", oracle("adam-keras")),
    Fault("rules/adam.py", "square(g), self.beta_2)", "square(g), self.beta_1)",
          "a swapped beta", oracle("adam-optax")),
    Fault("rules/adam.py", "peak = h * correction", "peak = h",
          "AMSGrad's maximum used without its correction", oracle("adam-optax")),
    Fault("rules/adadelta.py", "square(u), self.rho)", "square(g), self.rho)",
          "gradients accumulated in the place of steps", oracle("adadelta-keras")),
    Fault("rules/adagrad.py", "return -at.lr * g", "return -1.01 * at.lr * g",
          "the rate is 1 % off", oracle("adagrad-keras")),
    Fault("rules/adamax.py", "self.beta_2 * s.norm", "s.norm",
          "the norm never decays", oracle("adamax-keras")),
    Fault("rules/adafactor.py",
          "g * (jnp.sqrt(mean(r_full, rows, keepdims=True)) / jnp.sqrt(r_full)) / jnp.sqrt(c_full)",
          "g / jnp.sqrt(r_full / mean(r_full, rows, keepdims=True) * c_full)", "NaN where a unit is dead",
          law("zeros_are_harmless", "Adafactor-keras")),
    Fault("rules/adafactor.py", "mean(r_full, rows,", "mean(r_full, columns,",
          "rows normalised over the wrong axis", oracle("test_adafactor_factors")),
    Fault("rules/nadam.py", "ahead = mu_next * m", "ahead = mu * m",
          "today's momentum in the place of tomorrow's", oracle("nadam-keras")),
    Fault("rules/ftrl.py", "jnp.clip(z, -l1, l1) - z", "-z",
          "l1 does nothing", oracle("ftrl-keras")),
    Fault("rules/lion.py", "self.State(ema(s.momentum, g, self.beta_2))", "self.State(ema(s.momentum, g, self.beta_1))",
          "a swapped beta", oracle("lion-keras")),
    Fault("rules/lamb.py", "jnp.where(usable, u_norm, 1), 1)", "jnp.where(usable, u_norm, 1), 0)",
          "parameters that are zero never start", oracle("lamb-keras")),
    Fault("rules/orthogonal/iteration.py", "b * gram + product(c * gram, gram)", "b * gram + c * gram",
          "the quintic term is cubic", oracle("muon-keras")),
    Fault("rules/schedule_free_adamw.py", "1 / at.t", "1 / (at.t + 1)",
          "the average is one step behind", oracle("schedule_free_adamw-keras")),
    Fault("rules/sgd.py", "self.momentum * s.momentum + inside * g", "inside * g - self.momentum * s.momentum",
          "the momentum pulls back", oracle("sgd-keras")),
    Fault("rules/adamw.py", '{"weight_decay": 0.004}', '{"weight_decay": 0.01}',
          "another library's default", "stateful/test_serialization.py -k 'signatures_are_keras_own and AdamW'"),
    Fault("rules/nadam.py", "self.momentum_at(at.t))", "self.momentum_at(at.t + 1))",
          "the product of momenta is a step ahead", oracle("nadam-keras")),
    Fault("rules/lion.py", "jnp.sign(ema(s.momentum, g, self.beta_1))", "jnp.sign(ema(s.momentum, g, self.beta_2))",
          "the step takes the momentum's beta", oracle("lion-keras")),
    Fault("rules/lamb.py", "usable = (p_norm > 0) & (u_norm > 0)", "usable = p_norm > 0",
          "NaN where the step is zero", "pure/test_functional.py -k test_lamb_without"),
    Fault("rules/muon.py", "max(rows, columns) ** 0.5", "min(rows, columns) ** 0.5",
          "scaled by the shorter side", oracle("muon-keras")),
    Fault("rules/orthogonal/iteration.py", "r = product(z, rz) + a * rz", "r = product(z, rz)",
          "the Gram matrix does not follow", "rules/test_muon.py -k 'gram_form and True-cans'"),
    Fault("rules/normuon.py", "jnp.mean(square(x), 1, keepdims=True)", "jnp.mean(square(x), 2, keepdims=True)",
          "the average of inputs in the place of neurons", oracle("normuon-authors")),
    Fault("rules/adamuon.py", "v / (1 - self.beta_2**at.t)", "v",
          "the average of squares starts from zero", oracle("adamuon-authors")),
    Fault("rules/dion2.py", "jnp.where(used,", "jnp.where(~used,",
          "the slices that were not used decay", oracle("dion2-authors")),
    Fault("language/matrices.py", "key=lambda i: self._order[i]", "key=lambda i: i",
          "a transposed array is not transposed back", "rules/test_muon.py -k 'alone and heads and muon'"),
    Fault("engine/cores/stacked.py", "all_to_all(x, axes, side, 0,", "all_to_all(x, axes, 0, side,",
          "matrices are sent on instead of back", "pure/test_sharding.py -k 'whole_matrices and rows-None'"),
    Fault("engine/cores/layouts.py", "if x and x.divides(mesh, shape)", "if x",
          "blocks of unequal sizes are exchanged", "pure/test_sharding.py -k do_not_divide"),
    Fault("rules/schedule_free_adamw.py", "scalars.weight_sum + max_rate**2", "scalars.weight_sum + max_rate",
          "the weights are not what their sum is of", oracle("schedule_free_adamw-optax")),
    Fault("rules/adopt.py", "root(s.velocity), ", "root(ema(s.velocity, square(g), self.beta_2)), ",
          "the divisor knows the gradient that it divides", oracle("adopt-authors")),
    Fault("rules/ademamix.py", "+ alpha * slow", "+ slow",
          "the slow momentum has no weight", oracle("ademamix-authors")),
    Fault("rules/laprop.py", "ema(s.momentum, at.lr * n, self.beta_1)", "ema(s.momentum, at.lr * g, self.beta_1)",
          "momentum of gradients that are not normalized", oracle("laprop-authors")),
    Fault("rules/stable_adamw.py", "at.lr / jnp.maximum(1, at.rms(", "at.lr / jnp.maximum(2, at.rms(",
          "the rate does not fall with spikes", oracle("stable_adamw-authors")),
    Fault("rules/adan.py", "1 - self.beta_2 if optax else self.beta_2", "1 - self.beta_2",
          "the factor of differences is 0.08 for the authors too", oracle("adan-authors")),
    Fault("rules/radam.py", "kept * (scalars.age + 1)", "kept * scalars.age + 1",
          "the average has another age", oracle("radam-authors")),
    Fault("rules/adabelief.py", "square(g - m)", "square(g - s.momentum)",
          "the distance is from the momentum before", oracle("adabelief-authors")),
    Fault("rules/yogi.py", "jnp.sign(s.velocity - square(g))", "jnp.sign(square(g) - s.velocity)",
          "the second moment runs away from squares", oracle("yogi-authors")),
    Fault("rules/signum.py", "jnp.sign(m)", "m", "the step has the size of the momentum", oracle("signum-authors")),
    Fault("rules/grams.py", "jnp.sign(g) * jnp.abs(u)", "u", "Adam", oracle("grams-authors")),
    Fault("rules/lars.py", "(0 if self.variant == \"optax\" else decay * length)", "0",
          "the decay is missing in the divisor", oracle("lars-authors")),
    Fault("rules/novograd.py", "jnp.where(at.t == 1, found, ", "jnp.where(at.t == 0, found, ",
          "the first norm counts a fiftieth", oracle("novograd-authors")),
    Fault("rules/rprop.py", "direction = jnp.where(same < 0, 0, sign)", "direction = sign",
          "a step back after a change of sign", oracle("rprop-authors")),
    Fault("rules/madgrad.py", "jnp.cbrt(root) ** 2", "root", "a square root", oracle("madgrad-authors")),
    Fault("rules/mars_adamw.py", "c / jnp.maximum(1, at.norm(c))", "c", "corrected gradients are not clipped",
          oracle("mars_adamw-authors")),
    Fault("rules/shampoo.py", "** -0.25", "** -0.5", "the roots are square roots", oracle("shampoo-authors")),
    Fault("rules/soap.py", "v = jnp.take(v, order, axis)", "pass", "second moments keep the order of the former basis",
          oracle("soap-authors")),
    # Numerics and the rule language
    Fault("language/numerics.py",
          "return self.complement if isinstance(other, int) and other == 1 else other - self.value",
          "return other - self.value", "1 - beta from a float32 beta",
          "language/test_numerics.py -k complemented"),
    Fault("language/numerics.py", "jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype", "dtype",
          "bfloat16 arithmetic and slots", law("low_precision_follows_float32", "AdamW")),
    Fault("language/paths.py", '"AxisMetadata"', '"Absent"',
          "a pattern sees linen's boxes", "interop/test_boxes.py -k 'without and partitioned and partition-'"),
    Fault("language/paths.py",
          "if key and isinstance(tree, boxes) and key[0] == _INSIDE:", "if key and key[-1] == _INSIDE:",
          "a field of the name `value` is no part of a path", "interop/test_boxes.py -k only_boxes"),
    Fault("checkpoint/restore.py", "saved = {former.get(name, name): x for name, x in saved.items()}", "pass",
          "older checkpoints of boxed parameters cannot be read", "interop/test_boxes.py -k 'old_ones and adam-nnx'"),
    Fault("language/hyperparameters.py", "if is_function(field, value):", "if callable(value):",
          "a flag may be a function", "project/test_bad_input.py -k only_numbers"),
    Fault("engine/pipeline.py", "hyper = self.at(hyper, state.count)", "hyper = self.at(hyper, state.count + 1)",
          "numbers are those of the next step", law("scheduled_equals_replaced", "Adam-keras and pure")),
    Fault("language/rule.py", "default=cls.variants[0]", 'default="keras"',
          "a rule of optax's alone cannot be made", "language/test_rule.py -k first_variant"),
    Fault("engine/cores/leafwise.py", "first_scalars(self.rule.bind(hyper))", "first_scalars(self.rule)",
          "scalars start from no hyperparameter", "language/test_rule.py -k scalars_start"),
    Fault("engine/cores/leafwise.py", "start = lambda x: jnp.array(", "start = lambda x: jnp.asarray(",
          "a scalar shares its buffer with a hyperparameter", "language/test_rule.py -k stateful_face"),
    Fault("rules/schedule_free_adamw.py", '{"master_weights": "float32"}', "{}",
          "the average loses what rounding takes off the parameter", law("sixteen_bits_beside_the_peer", "no_row")),
    Fault("language/hyperparameters.py", "return self.bind(dict.fromkeys(self.traced(), TRACED))", "return self",
          "numbers are constants of the program", law("one_compilation", "Adam")),
    Fault("engine/cores/leafwise.py", "jax.tree.map(lambda *x: sum(x), *shares)", "shares[0]",
          "the sums are those of the first array", "engine/test_sums.py -k 'every_array and xla'"),
    Fault("engine/cores/leafwise.py", "now.t - 1)", "0 * now.t)",
          "every step draws the same random numbers", "engine/test_losses.py -k noise_is"),
    Fault("engine/stages/accumulate.py", "jnp.where(first, loss, scalars[LOSSES] + loss)", "scalars[LOSSES] + loss",
          "losses of earlier windows count", "engine/test_losses.py -k accumulated"),
    Fault("engine/programs/loss_scaled.py", "unscaled(x, scale) if name == LOSS else", "x if name == LOSS else",
          "a scaled loss beside gradients that are not", "engine/test_losses.py -k scaled_gradients"),
    Fault("language/nested.py", 'f"inner_{name}" if name in own else name', "name",
          "a modifier and the rule inside share a slot", "rules/test_modifiers.py -k keep_their_names"),
    Fault("language/modifier.py", "rule if rule.covers(path, p) else Modifier(rule.inner)", "rule",
          "a pattern changes all parameters", "rules/test_modifiers.py -k 'alone and scaled'"),
    Fault("rules/modifiers/hyperball.py", "at.without_decay()", "at",
          "weight decay turns the step", "rules/test_modifiers.py -k 'alone and hyperball-adam'"),
    Fault("rules/modifiers/reduce_on_plateau.py", "jnp.where(rests | improves, 0, own.bad + 1)",
          "jnp.where(improves, 0, own.bad + 1)",
          "means count while the modifier rests", "rules/test_reduce_on_plateau.py -k optax"),
    Fault("rules/modifiers/cautious.py", "(step * g.conj()).real < 0", "(step * g.conj()).real > 0",
          "only what goes against its gradient moves", "rules/test_modifiers.py -k 'alone and cautious-sgd'"),
    Fault("rules/prodigy.py", "d / self.d0 * self.rate(d, at) * sums.towards", "self.rate(d, at) * sums.towards",
          "the numerator lacks its weight", "engine/test_sums.py -k 'grow and prodigy'"),
    Fault("rules/dadapt_adamw.py", "jnp.maximum(d, found)", "found",
          "the distance shrinks", oracle("dadapt_adamw-authors")),
    Fault("rules/dog.py", "scalars.squares + at.sums.gradients", "at.sums.gradients",
          "only the last gradients count", oracle("dog-authors")),
    Fault("rules/polyak_sgd.py", "at.sums.squares + self.eps", "jnp.sqrt(at.sums.squares) + self.eps",
          "the norm of the gradients in the place of its square", "engine/test_losses.py -k beside_optax"),
    Fault("rules/momo.py", "jnp.where(at.t == 1, new, ema(old, new, self.beta))", "ema(old, new, self.beta)",
          "averages start from zero", "engine/test_losses.py -k beside_optax"),
    Fault("language/fields.py", "return complemented(value, dtype)", "return complemented(0.9, dtype)",
          "every decay is 0.9 once it is traced", law("traced_equals_static", "Adam-keras")),
    Fault("rules/lamb.py", 'grain: ClassVar = "leaf"', 'grain: ClassVar = "element"',
          "a rule of norms that claims to be of elements", law("grain", "Lamb-keras")),
    Fault("language/numerics.py", "return old + (1 - beta) * (new - old)", "return beta * old + (1 - beta) * new",
          "two roundings of beta that do not add up to one", "language/test_numerics.py -k both_sides"),
    # The pipeline and what runs in it
    Fault("engine/update.py", "decayed = [p if d is None else p - d", "decayed = [p if d is None else p",
          "decay after the rule in the place of before", oracle("lamb-keras")),
    Fault("engine/update.py", "if g is None or not leaf.decays:", "if g is None:",
          "what is excluded decays", oracle("sgd-keras")),
    Fault("engine/core.py", "astype(jnp.result_type(float)) + 1", "astype(jnp.result_type(float)) + 2",
          "the first step is the second", oracle("adam-keras")),
    Fault("engine/compiled.py", "self.init = jax.jit(program.init)",
          "self.init = jax.jit(program.init, donate_argnums=0)",
          "`init` consumes the parameters", law("init_can_be_donated")),
    Fault("engine/update.py", "d is None or p is None else p + d", "d is None or p is None else p - d",
          "`step` goes uphill, `update` does not", law("update_and_add_equals_step", "SGD-keras")),
    Fault("storage/formats.py", "return stochastic(x.astype(jnp.float32), like.dtype, seed())", "return x",
          "slots that grow to float32 again", law("storage_follows_float32", "nearly and bfloat16-Adam-")),
    Fault("engine/core.py", "astype(jnp.result_type(float)) + 1", "astype(jnp.float32) + 1",
          "a float32 clock under x64", law("x64", "Adam-keras")),
    Fault("engine/update.py", "slots[i] = slots[i] | written  #", "slots[i] = written  #",
          "slots that a user made get lost", "stateful/test_weights.py -k survives"),
    Fault("engine/rows.py", ".add(values)", ".set(values)",
          "of duplicate rows only one counts", law("sparse_equals_dense", "lazy and SGD-keras")),
    Fault("language/sparse.py", "(indices < 0) | (indices >= count)", "indices >= count",
          "a negative index trains one of the last rows", law("sparse_equals_dense", "lazy and SGD-keras")),
    Fault("engine/initial_state.py", "if any(isinstance(p, jax.ShapeDtypeStruct)", "if all(isinstance(p, int)",
          "`init` wants real arrays", law("init_needs_no_arrays", "SGD-keras")),
    Fault("pure/kernel.py", "return Kernel, (self.program,)", "return Kernel, (self.rule,)",
          "a pickle without the options", law("pickled_equals_original", "Adam-keras")),
    Fault("engine/compiled.py", "donate_argnums=(0, 1)", "donate_argnums=(0,)",
          "the state is not donated", law("init_can_be_donated", "SGD-keras")),
    Fault("engine/pipeline.py", "amounts, state.count), slots", "amounts, state.count + 1), slots",
          "calls are counted in the place of updates", law("accumulation_equals_mean", "SGD-keras")),
    Fault("engine/gradients.py", "jax.lax.psum(g, over)", "jax.lax.pmean(g, over)",
          "devices averaged in the place of summed",
          "stateful/test_optimizer.py -k 'axis_name_sums and False-shard_map'"),
    Fault("engine/gradients.py", "return g / scale.astype", "return g * scale.astype",
          "scaled once more in the place of back", oracle("sgd-keras")),
    Fault("engine/write_back.py", "stored.astype(dtype), move.touched", "stored, move.touched",
          "bfloat16 parameters become float32", law("types_are_a_fixed_point", "SGD-keras")),
    Fault("engine/cores/leafwise.py", "decaying if leaf.decays else plain", "decaying",
          "what is excluded decays inside the rule", oracle("lamb-optax")),
    Fault("engine/cores/leafwise.py", "scalars = present(shared)", "present(shared)",
          "what is kept once is advanced and then forgotten", oracle("nadam-keras")),
    Fault("engine/rows.py", 'mode="drop"', 'mode="clip"',
          "unused places write into the last row", law("sparse_equals_dense", "lazy and SGD-keras")),
    Fault("stateful/custom/hooks.py", "now.t.astype(jnp.int32) - 1}", "now.t.astype(jnp.int32)}",
          "hooks see the next iteration", "stateful/test_custom.py -k test_the_clock"),
    Fault("engine/cores/foreign.py", "None if g is None else u for", "u for",
          "a parameter without a gradient moves", "pure/test_functional.py -k test_from_optax_leaves"),
    # Storage
    Fault("storage/tiles.py", "if own != n and (own", "if False and (own",
          "blocks on two devices, which every step gathers", "storage/test_tiles.py -k follow_the_shards"),
    Fault("storage/tiles.py", "    if fits:", "    if False:",
          "blocks that do not fit the tiles of a TPU", "storage/test_tiles.py -k fit_the_machine"),
    Fault("rules/soap.py", "moved = matmul(factor, basis)", "moved = factor @ basis",
          "products of float32 that are bfloat16 on a TPU", law("products_name_their_precision", "SOAP")),
    Fault("engine/one_kernel.py", "pattern & (pattern | _pattern(y))", "pattern & _pattern(y)",
          "a parameter loses the bits that its slots lack", "engine/test_one_kernel.py -k no_bit"),
    Fault("engine/cores/stacked.py", 'if platform() == "tpu" or any(', "if any(",
          "Muon does not compile for a mesh of TPUs", "engine/test_one_kernel.py -k custom_partitioning"),
    Fault("engine/one_kernel.py", "not isinstance(g, Rows)", "True",
          "a sparse step on a TPU reads the whole table", "engine/test_one_kernel.py -k whole_array_moves"),
    Fault("engine/stages/guard.py", "choose = branch if any(", "choose = either if any(",
          "a guarded sparse step on a TPU writes the whole table", "engine/test_one_kernel.py -k not_selected"),
    Fault("engine/slot_storage.py", "            return not np.any(x.value)", "            return True",
          "slots that start as ones start as zeros", "storage/test_tiles.py -k start_as_zeros"),
    Fault("engine/rows.py", "jnp.where(indices[i] < len(a), column, old)", "column",
          "a row past the end overwrites the last one", "engine/test_platforms.py -k same_rows"),
    Fault("checkpoint/names.py", "if form[2] else None", "if False else None",
          "blocks of another axis read as those of the last", "storage/test_tiles.py -k another_platform"),
    Fault("storage/formats.py", "seed and seed(), like.tiles", "None, like.tiles",
          "codes rounded to nearest: a slow average stands still", "storage/test_storage.py -k 'gets_as_far and int4'"),
    Fault("storage/blockwise.py", "    if not code.signed:", "    if False:",
          "second moments become zero", "storage/test_storage.py -k 'never_becomes_zero'"),
    Fault("engine/native/fusion.py", "known = Moment(at.depth, at.level + 1)", "known = at",
          "a norm is used before it is known", "engine/native/test_native.py -k native_and_in_place"),
    Fault("engine/native/backends.py", "    if devices != 1:", "    if False:",
          "sharded arrays are gathered into an opaque call", "engine/native/test_native.py -k several_devices"),
    Fault("engine/native/backends.py", "if module.lowering_parameters.for_export:", "if False:",
          "an export holds a loop of this machine", "engine/native/test_native.py -k portable"),
    Fault("engine/native/phase.py", "shared = all(len(set(column)) == 1 for column in columns)", "shared = True",
          "all arrays are rounded with the draws of the first", law("native_equals_xla", "codes and int8-Adam-")),
    Fault("engine/native/backends.py", '<= {"cuda", "rocm"}', '== {"rocm"}', "a GPU keeps new slots in float32",
          "engine/native/test_native.py -k pass_of_their_own"),
    Fault("engine/native/phase.py", "barrier([known[x] for x in values])", "barrier([known[x] for x in values[::-1]])",
          "what is held between two passes is mixed up", "engine/native/test_native.py -k two_passes"),
    Fault("engine/native/build.py", "if hashlib.sha256(found).hexdigest() != digest.read_text().strip():",
          "if False:", "a library that is not the one compiled is loaded",
          "engine/native/test_native.py -k 'library and cut'"),
    Fault("engine/native/build.py", "and not found.st_mode & 0o022", "",
          "a library that others can write is loaded", "engine/native/test_native.py -k 'library and others'"),
    Fault("engine/native/build.py", 'name = f"jaxopt_keras_{key}"', 'name = f"jaxopt_keras_{key}_{os.getpid()}"',
          "no process finds another's programs", "engine/native/test_native_processes.py -k caches"),
    Fault("engine/native/build.py", "[*command, version(command),", "[version(command),",
          "a compiler's flags change nothing", "engine/native/test_native_processes.py -k caches"),
    Fault("engine/native/build.py", "if os.getpid() == process else", "if process else",
          "a forked process takes its parent's loops with it", "engine/native/test_native.py -k forked"),
    Fault("engine/native/cuda/kernel.py", "numbers[x, out] for", "numbers[x, out] ^ 1 for",
          "a kernel gets the pointers of other arrays", "engine/native/test_cuda_grid.py -k SGD-keras"),
    Fault("engine/native/cuda/render.py", "if self.tiling.is_exact else f", "if True else f",
          "threads run past the end of a block", "engine/native/test_cuda_grid.py -k 'any_length and int8'"),
    Fault("engine/native/cuda/render.py", 'return "first + o"', 'return "o"',
          "every chunk is rounded with the draws of the first",
          "engine/native/test_cuda_grid.py -k 'any_length and int8'"),
    Fault("engine/native/cuda/launch.py", "rows += [start + (i * width", "rows += [(i * width",
          "one kind of loops reads the scalars of another",
          "engine/native/test_cuda_grid.py -k 'xla and Adam-keras and int8'"),
    Fault("engine/native/cuda/ptx.py", "if tuple(map(int, newest", "if False and tuple(map(int, newest",
          "a driver gets PTX that is newer than it", "engine/native/test_cuda_ptx.py -k that_of_the_driver"),
    Fault("engine/native/cuda/probe.py", "if all(trial(device) for", "if any(trial(device) for",
          "kernels run although their results are wrong", "engine/native/test_cuda_ptx.py -k right_result"),
    Fault("engine/native/c_ops.py", '"max": "MAX({0}, {1})"', '"max": "{1} > {0} ? {1} : {0}"',
          "a maximum loses NaN", law("native_equals_xla", "exact and Adamax-optax")),
    Fault("storage/masters.py", "bits(slot) == bits(p)", "bits(slot) == bits(slot)",
          "the master reverts a written parameter", law("sixteen_bits_beside_the_peer", "written_counts")),
    Fault("storage/masters.py", "jnp.isfinite(master) & jnp.isfinite(wide)", "jnp.isfinite(wide)",
          "a written zero becomes NaN", law("sixteen_bits_beside_the_peer", "written_counts")),
    Fault("storage/masters.py", "<< (16 - BITS[kind])", "<< 8",
          "sixteen bits read as eight", "storage/test_storage.py -k 'test_masters and 16'"),
    Fault("storage/hash_rng.py", " + jnp.asarray(step).astype(jnp.uint32))", ")",
          "the same draws at every step", "storage/test_storage.py -k draws_differ"),
    Fault("storage/rounding.py", "infinity - 1)", "infinity)",
          "the greatest number is rounded to infinity", "storage/test_storage.py -k 'stays_finite and bfloat16'"),
    # Stages
    Fault("engine/stages/accumulate.py", "lambda s: s / (micro + 1).astype(s.real.dtype)", "lambda s: s",
          "the sum in the place of the mean", law("accumulation_equals_mean", "SGD-keras")),
    Fault("engine/stages/accumulate.py", "jnp.where(first, 0 if", "jnp.where(micro < 0, 0 if",
          "the sum never starts anew", law("accumulation_equals_mean", "SGD-keras")),
    Fault("engine/stages/accumulate.py", "s[SUM] = jnp.zeros_like(p)", "s[SUM] = jnp.zeros_like(p, jnp.bfloat16)",
          "a sum whose type changes at the first call", law("types_are_a_fixed_point", "every_stage")),
    Fault("engine/stages/clip.py", "limit / jnp.where(limit > 0, greatest, 1), 1)", "limit / greatest, 1)",
          "small gradients are scaled up", oracle("adamw-keras")),
    Fault("engine/stages/average.py", "jnp.where(step == 0, 1, 1 - beta)", "jnp.where(step < 0, 1, 1 - beta)",
          "the start value lingers in the average", oracle("adam-keras")),
    Fault("engine/stages/average.py", "(step + 1) % frequency", "step % frequency",
          "overwritten a step late", oracle("adam-keras")),
    Fault("engine/stages/average.py", "step == 0, 1, 1 - beta)", "step == 0, 1, beta * 1.0)",
          "the average's momentum taken for its complement", oracle("adam-keras")),
    Fault("engine/stages/clip.py", '"global_clipnorm", by_global_norm', '"global_clipnorm", by_norm',
          "each array clipped by itself", oracle("nadam-keras")),
    Fault("engine/stages/clip.py", "hyper[name])", 'hyper[name] / hyper.get("loss_scale_factor", 1.0))',
          "clipped as if the loss were still scaled", oracle("adam-keras")),
    Fault("language/numerics.py", "jnp.clip(x, -limit, limit)", "x", "a huge gradient makes NaN",
          "rules/test_large_gradients.py -k 'float64 and adam and keras'"),
    Fault("language/numerics.py", "jnp.where(overflows, scaled, plain)", "plain", "a norm overflows",
          "rules/test_large_gradients.py -k clips"),
    Fault("language/numerics.py", "jax.lax.optimization_barrier(", "(",
          "the norm of one huge element is NaN", "rules/test_large_gradients.py -k norms_in_transformations"),
    Fault("engine/stages/clip.py", "2.0**-64, 1)", "1.0, 1)", "a clip of a huge gradient is a step of zero",
          "rules/test_large_gradients.py -k clips_of_huge"),
    Fault("language/numerics.py", "jnp.sqrt(jnp.maximum(x, float(jnp.finfo(x.dtype).tiny)))", "jnp.sqrt(x)",
          "the derivative of a step is NaN at zero gradients", law("smooth_at_zero", "finite and Adam-keras-plain")),
    Fault("interop/keras/adapter.py", "if [*map(id, variables)] == [*self._trainable_variables_indices]:", "if True:",
          "unfrozen layers never get slots", "interop/test_interop_keras.py -k frozen_or_unfrozen"),
    Fault("history/measures.py", "norm(_widened(x), dtype=dtype)", "jnp.sqrt(jnp.sum(_widened(x) ** 2)).astype(dtype)",
          "a measured norm overflows", "rules/test_large_gradients.py -k measures"),
    Fault("engine/pipeline.py", "optax.safe_increment(state.count)", "state.count + 1", "the count overflows",
          "engine/test_accumulation.py -k greatest_integer"),
    Fault("engine/stages/accumulate.py", "jnp.any(sums[i] != 0)", "False",
          "a missing gradient drops those before it", "engine/test_accumulation.py -k 'zeros_in_the_mean and last'"),
    Fault("engine/stages/accumulate.py", "micro + 1 >= k", "micro + 1 == k",
          "a window that another kernel began never ends", "engine/test_state_check.py -k window"),
    Fault("engine/state_check.py", "if name in new and", "if False and",
          "slots of another shape are broadcast", "engine/test_state_check.py -k 'refused and shape-plain-step'"),
    Fault("engine/gradients.py", "axis not in tracked or", "True or", "gradients are summed by `shard_map` and again",
          "engine/test_mapped_axes.py -k 'once and plain-step-True'"),
    Fault("language/sparse.py", "indices.dtype.itemsize < 4", "False", "rows with narrow indices are lost",
          "laws/test_sparse_equals_dense.py -k any_integer_dtype"),
    Fault("engine/compiled.py", "if not in_transformation():", "if True:", "a transformation's arguments are deleted",
          "pure/test_donation.py -k 'adam-grad-step'"),
    Fault("engine/compiled.py", '"the same buffer twice", "donated in the same call"', '"?"',
          "tied parameters are an error of XLA's", "pure/test_donation.py -k twice"),
    # What only the compiled program shows
    Fault("engine/update.py", "else p + d for p, d in zip(params, deltas",
          "else p.astype(float) + d.astype(float) for p, d in zip(params, deltas",
          "a sum in float64 under x64", "engine/test_structure.py -k 'x64 and adam'"),
    Fault("engine/cores/leafwise.py", "traced_once(_update, job.skeleton, known)(*job[1:])",
          "traced_once(_update, job.skeleton, known)(*job[1:]); steps[i] += 0 * steps[i].max()",
          "the step written to memory before it is added", "engine/test_structure.py -k 'test_rules and adamw'"),
    Fault("engine/pipeline.py", "accumulate.run_every(k, gradients, slots, scalars, update, idle, loss)",
          "accumulate.run_every(k, gradients, jax.lax.optimization_barrier(slots), scalars, update, idle, loss)",
          "slots copied in every micro-step", "engine/test_structure.py -k accumulation"),
    # Faces
    Fault("stateful/packed_variables.py", "self._cache.clear()", "pass",
          "a packed variable shows what it was before the step",
          "stateful/test_buffers.py -k 'equals_unpacked and adam'"),
    Fault("stateful/packed_variables.py",
          "with jax.ensure_compile_time_eval():  # a cached", "if True:  # a cached",
          "a traced value is kept", "stateful/test_buffers.py -k never_traced"),
    Fault("stateful/settings.py", "self._scheduled(state.count)", "self._scheduled(state.count + 1)",
          "the schedule is a step ahead", "stateful/test_optimizer.py -k 'test_pure_equals_stateful and averaged-SGD'"),
    Fault("stateful/variable_kinds.py",
          "return value if sys.getrefcount(value) <= _SOLE_REFERENCES else jnp.copy(value)", "return value",
          "a step deletes what a user kept", "stateful/test_optimizer.py -k test_take_copies"),
    Fault("stateful/loss_scale.py", "scaled(loss, self.dynamic_scale.value)", "scaled(loss, self._kept.scalars[SCALE])",
          "a compiled loss keeps its first scale", "stateful/test_compiled_losses.py -k a_loss_scale"),
    Fault("stateful/traced_loss.py", "if not changed:", "if True:",
          "a compiled loss keeps the first values that it read", "stateful/test_compiled_losses.py -k python_values"),
    Fault("stateful/python_reads.py", "self.names.add(name)", "pass",
          "a changed attribute is not seen", "stateful/test_compiled_losses.py -k 'python_values and method'"),
    Fault("stateful/traced_loss.py", "g if id(v) in read else None for", "g for",
          "zeros in the place of None", "stateful/test_gradients.py -k not_read"),
    Fault("stateful/state_views.py", "*own, *slots, *added, *counters", "*own, *added, *slots, *counters",
          "averages before the slots that tf.keras had", "stateful/test_weights.py -k tf_keras"),
    Fault("stateful/registry.py", "if unbound.get(path) == tuple(h.shape):", "if path in unbound:",
          "a copy gives a variable the slots of another shape", "stateful/test_serialization.py -k another_shape"),
    Fault("schedules/decays.py", 'step, method="compare_all")', 'step, side="right", method="compare_all")',
          "the rate changes at its boundary, not after it", "schedules/test_schedules.py -k Piecewise"),
    Fault("stateful/sources.py", "self.functions.items() if n not in numbers}", "self.functions.items()}",
          "a number does not replace a schedule",
          "stateful/test_optimizer.py -k 'test_learning_rates and constructor'"),
    Fault("stateful/weight_lists.py", "if value.shape != have.shape:", "if value.ndim != have.ndim:",
          "weights of another shape are taken", "stateful/test_weights.py -k test_set_weights_refuses"),
    Fault("stateful/settings.py", "paths=paths | known | {handle(v).path for v in variables}", "paths=paths",
          "in a copy everything decays", "stateful/test_serialization.py -k test_exclusions_are_copied"),
    # Interrupts, threads, memory
    Fault("stateful/signals.py", "        self._defers = True", "        self._defers = False",
          "Ctrl-C raises between a donated call and the storing",
          "stateful/test_interrupts_and_threads.py -k between_the_call"),
    Fault("stateful/signals.py", "self._pending[number] = frame", "self._pending = {number: frame}",
          "of two signals one is dropped", "stateful/test_interrupts_and_threads.py -k no_signal"),
    Fault("stateful/signals.py", "            self._restore()  # again: the others", "            pass",
          "an interrupt at the end leaves another handler", "stateful/test_interrupts_and_threads.py -k border"),
    Fault("stateful/packed_variables.py", "array = self.parts", "array = self._array = self.parts",
          "an interrupted read of a buffer loses it", "stateful/test_interrupts_and_threads.py -k buffer_is_read"),
    Fault("stateful/lock.py", "LOCK = threading.RLock()", 'LOCK = __import__("contextlib").nullcontext()',
          "threads read arrays that a step has donated", "stateful/test_interrupts_and_threads.py -k reading_while"),
    Fault("stateful/lock.py", "        except Exception as error:", "        except ZeroDivisionError as error:",
          "an error of one write loses later arrays", "stateful/test_interrupts_and_threads.py -k one_write"),
    Fault("stateful/variable_kinds.py", "        variable.set_raw_value(value)", "        pass",
          "a refused write leaves a donated array", "stateful/test_interrupts_and_threads.py -k one_write"),
    Fault("interop/flax.py", "        with uninterrupted():", "        if True:",
          "an interrupt separates a model from its state", "interop/test_interop_flax.py -k interrupt"),
    Fault("engine/compiled.py", "@functools.lru_cache(maxsize=64)", "@functools.lru_cache(maxsize=4096)",
          "programs of dropped kernels are kept", "engine/test_program_memory.py -k search_over"),
    Fault("engine/compiled.py", "    found = _in_use.get(program)", "    found = None",
          "equal kernels compile twice", "engine/test_program_memory.py -k share"),
    # Guards, groups, devices
    Fault("engine/native/runtime.h", "(gathered_x[k] ? i : r)", "r", "rows are read by their index among the touched",
          "engine/native/test_native_rows.py -k 'equal and adam-plain'"),
    Fault("engine/native/fusion.py", "if len(region.leaves) == 1:", "if False:", "rows are copied out and in",
          "engine/native/test_native_rows.py -k in_place"),
    Fault("engine/stages/guard.py", "*own), is_finite(grads), None", "*own), is_finite(grads[:1]), None",
          "only the first gradient is looked at", law("bad_calls_change_nothing", "SGD-keras-plain-plain")),
    Fault("stateful/configs.py", "if excluded.patterns or excluded.paths:", "if excluded.patterns:",
          "excluded variables decay after a config", "stateful/test_serialization.py -k 'from_decay and variables'"),
    Fault("stateful/optimizer.py", "            self._drop_sums_of_frozen()", "            pass",
          "gradients from before move a frozen variable", "stateful/test_trainable.py -k 'of_a_window and plain'"),
    Fault("interop/keras/adapter.py", "            self.wrapped._drop_sums_of_frozen()", "            pass",
          "a stale sum trains an unfrozen layer", "stateful/test_trainable.py -k window_of_fit"),
    Fault("checkpoint/folders.py", "            _check_chunks(name, saved[name])", "            pass",
          "huge chunks are inflated", "checkpoint/test_checkpoint_strangers.py -k larger_than"),
    Fault("engine/stages/guard.py", "refused = fine & ~probe", "refused = ~fine & ~probe",
          "results are not looked at", "engine/test_guard_results.py -k 'test_step and overflow'"),
    Fault("engine/probe.py", "_is_finite(old) & ~_is_finite(new)", "~_is_finite(new)",
          "a mask of -inf stops the training", "engine/test_guard_results.py -k does_not_count"),
    Fault("engine/probe.py", "if x.dtype in EXPONENTS:", "if False:",
          "a rounding to 16 bits is left out", "engine/test_guard_results.py -k 'test_step and float16'"),
    Fault("engine/probe.py", "None if amount is None else Before(p, True, part)",
          "None if amount is None else Before(amount, False, part)",
          "the amount is looked at, not the sum", "engine/test_guard_results.py -k amount_that_is_finite"),
    Fault("engine/probe.py", "return jnp.where(exists, term, 0)", "return term",
          "rows that are not there refuse a step", "engine/test_guard_results.py -k not_there"),
    Fault("engine/programs/multi.py", "plain = unguarded(_watched(program))", "plain = program",
          "a group refuses alone", "engine/test_guard_results.py -k groups_of_the_stateful"),
    Fault("engine/slot_storage.py", "x = jnp.where(x != x, jnp.inf, x)", "pass",
          "NaN becomes a code", "engine/test_guard_results.py -k 'few_bits and int8'"),
    Fault("engine/stages/accumulate.py", "jnp.where(when, 0, scalars[MICRO_STEP])", "scalars[MICRO_STEP]",
          "a bad window is tried for ever", "engine/test_guard_results.py -k starts_anew"),
    Fault("engine/native/cond_sinking.py", "arrays, before) for e in conds if e is not cond}",
          "arrays, before) for e in conds if False}",
          "the probe of a guard unpacks the buffer", "packing/test_flat.py -k 'within_the_buffer and lamb'"),
    Fault("engine/programs/loss_scaled.py", "jnp.maximum(scale / 2, self.lowest)", "scale / 2",
          "a loss scale without a floor", "pure/test_groups.py -k test_loss_scale"),
    Fault("engine/programs/multi.py", "grads, reduce = self.summed(params, grads), False", "reduce = False",
          "groups decide on what each device has by itself", "engine/test_guard.py -k one_decision"),
    Fault("engine/slot_sharding.py", "if p.ndim == 0:", "if True:",
          "fresh slots are copied to every device", "pure/test_sharding.py -k 'state_lies and adam-auto'"),
    Fault("engine/programs/offloaded.py", "return self._moved(state, jax.memory.Space.Host)", "return state",
          "state never leaves the device", "pure/test_sharding.py -k 'test_offload and pure'"),
    Fault("engine/pipeline.py", "searched = self.options.patterns() | self.core.patterns()", "searched = {}",
          "misspelt patterns are not named", "engine/test_unused_patterns.py -k 'warn_once and constraints'"),
    Fault("stateful/multi.py", "else first_match(self._optimizers, path)", "else None",
          "groups of the stateful face take whole paths only", "engine/test_unused_patterns.py -k take_the_same"),
    Fault("stateful/multi.py", "groups = _with_whole_paths(groups) if of_keras else groups", "pass",
          "Keras's keys are searched for", "engine/test_unused_patterns.py -k keras_maps"),
    Fault("engine/plan.py", 'if leaf.decays or decay is None else "excluded"', "",
          "excluded parameters seem to decay", "engine/test_plan.py -k excluded"),
    Fault("stateful/gradients.py", "return [v for v in variables if handle(v).trainable]", "return [*variables]",
          "a frozen variable is differentiated", "stateful/test_trainable.py -k 'gives_none and eager and ours'"),
    Fault("stateful/validation.py", "return [None if off else g for", "return [g for",
          "a frozen variable moves", "stateful/test_trainable.py -k 'ignored and plain-ours'"),
    Fault("engine/core.py", "if i not in self.frozen]", "]",
          "frozen leaves are among the gradients", "pure/test_frozen_leaves.py -k 'gradients_of_jax_fit'"),
    # The site
    Fault("../docs/generator/equations.py", "factors[-1].append(self.factor())", "factors[-1] = [self.factor()]",
          "a fraction without what it divides", "project/test_docs.py -k test_equations"),
    Fault("../docs/generator/equations.py", "self.at, self.depth = before", "self.at = before[0]",
          "fractions after a norm are written in a line", "project/test_docs.py -k test_equations"),
    Fault("../docs/generator/optimizers.py", "not has(on | {name: off[name]}, MATRIX)", "not has(on, MATRIX)",
          "optional slots are said to exist always", "project/test_docs.py -k test_when_slots_exist"),
    # Keras models
    Fault("interop/keras/state.py", "leaves[i] = _with_key_type(value, leaves[i])", "pass",
          "Keras's values of the state are not taken", "interop/test_interop_keras.py -k jitted_loop"),
    Fault("interop/keras/state.py", "self._value = take(lambda: self._value)", "pass",
          "a step donates an array of the state that other code holds", "interop/test_interop_keras.py -k outlives"),
    Fault("interop/keras/state.py", "layout = value.sharding if isinstance(value.sharding, NamedSharding) else None",
          "layout = None",
          "a slot is not sharded like its parameter", "interop/test_interop_keras.py -k eight_devices"),
    Fault("interop/keras/wrappers.py", "return scaled(value_of(loss), self.dynamic_scale.value)",
          "return scaled(value_of(loss), self.dynamic_scale.value * 0 + 64.0)",
          "the loss scale of the trainer is not the state's", "interop/test_interop_keras.py -k wrapped_again"),
    # Other libraries
    Fault("pure/numbers.py", "return injection.merged(hyper, state.hyperparams)", "return hyper",
          "injected hyperparameters are ignored", "pure/test_kernel_values.py -k 'injected_numbers and True-rule'"),
    Fault("pure/injection.py", "function(jnp.maximum(count - 1, 0))", "function(count)",
          "the state shows the rate of the next step",
          "pure/test_kernel_values.py -k 'scheduled_rate_is_shown and True-rule'"),
    Fault("engine/state_check.py", "[n for n in found if n not in kept]", "[]",
          "a state with more slots is accepted", "pure/test_kernel_values.py -k 'another_kernel and rules-plain'"),
    Fault("engine/initial_state.py", "if few_shapes and", "if False and",
          "one large program for a thousand arrays", "laws/test_init_can_be_donated.py -k one_program"),
    Fault("engine/cores/foreign.py", "tree, **now.hyper.get(EXTRA, {}))", "tree)",
          "extra arguments do not arrive", "interop/test_interop_optax.py -k 'from_optax and polyak_sgd'"),
    Fault("engine/native/fusion.py", "elif not e.inputs or not all(", "elif not all(",
          "a loop for an array that is made from nothing", "engine/native/test_native.py -k 'no_loop and nothing'"),
    Fault("interop/flax.py", "self.tx.step(params, self.state, grads, donate=False, **extra)",
          "self.tx.step(params, self.tx.init(params), grads, donate=False, **extra)",
          "the state starts anew in every step", "interop/test_interop_flax.py -k 'test_nnx and True-ours'"),
    Fault("interop/flax.py",
          "state = kernel.init(nnx.as_pure(variables))", "return kernel.init(nnx.as_pure(variables))",
          "slots lack the parameter's metadata", "interop/test_interop_flax.py -k metadata"),
    # Measures of a run
    Fault("history/measures.py", "program.on_engine(measured) if plain else measured", "measured",
          "measures that cost a pass of their own", "history/test_history.py -k nothing_is_copied"),
    Fault("history/measures.py", "summed, scale = program.summed(params, grads), hyper", "summed, scale = grads, hyper",
          "the norm of one device's gradient", "history/test_history.py -k mapped_axis"),
    Fault("history/measures.py", "grads = unscaled(grads, state.scalars[SCALE])", "pass",
          "the norm of a scaled loss's gradient", "history/test_history.py -k unscaled"),
    Fault("history/record.py", "scale = optimizer.scale_loss(1.0)", "scale = 1.0",
          "the same in the stateful face", "history/test_history.py -k unscaled"),
    Fault("history/record.py", "del self._waiting[:count]", "del self._waiting[count:]",
          "rows that are dropped, and others twice", "history/test_history.py -k nothing_waits"),
    # Checkpoints
    Fault("checkpoint/renumbered_names.py", "sorted(paths, key=_counters)", "sorted(paths)",
          "the tenth of a model's layers before its ninth", "checkpoint/test_checkpoint_facade.py -k counters"),
    Fault("checkpoint/renumbered_names.py", "or set(saved.values()) & set(now.values())", "",
          "a name counts for less than its counter", "checkpoint/test_checkpoint_facade.py -k name_that_is_found"),
    Fault("checkpoint/files.py", "        os.fsync(file.fileno())", "        pass",
          "renamed before it is on the disk", "checkpoint/test_checkpoint_files.py -k killed"),
    Fault("checkpoint/files.py", "if metadata.pop(DIGEST, None) != digest(flat, metadata):", "if False:",
          "damage is not seen", "checkpoint/test_checkpoint_files.py -k flipped"),
    Fault("checkpoint/files.py", 'return np.array(x, order="C", copy=copy)', "return np.array(x, copy=copy)",
          "a transposed array is saved in its own order",
          "checkpoint/test_checkpoint_files.py -k 'dtypes and float16'"),
    Fault("checkpoint/files.py", "if time.time() - leftover.stat().st_mtime > ABANDONED:", "if True:",
          "the file of a living save is removed", "checkpoint/test_checkpoint_files.py -k living"),
    Fault("checkpoint/files.py", "os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))", "pass",
          "a private file becomes public", "checkpoint/test_checkpoint_strangers.py -k private"),
    Fault("checkpoint/files.py", "    chosen = choose(declared)", "    chosen = declared",
          "a file is read before its shapes are compared", "checkpoint/test_checkpoint_strangers.py -k safetensors"),
    Fault("checkpoint/hdf5.py", "if links.get_info(key).type !=", "if False and links.get_info(key).type !=",
          "links to other files are followed", "checkpoint/test_checkpoint_strangers.py -k hdf5"),
    Fault("checkpoint/hdf5.py", "    if dataset.external:", "    if False:",
          "other files are read as numbers", "checkpoint/test_checkpoint_strangers.py -k hdf5"),
    Fault("checkpoint/hdf5.py", "    if dataset.is_virtual:", "    if False:",
          "datasets of other files are read", "checkpoint/test_checkpoint_strangers.py -k hdf5"),
    Fault("checkpoint/hdf5.py", "if dataset.id.get_create_plist().get_nfilters():", "if False:",
          "a few bytes inflate to any size", "checkpoint/test_checkpoint_strangers.py -k hdf5"),
    Fault("checkpoint/folders.py", "if x.is_symlink()", "if False",
          "links in a folder are followed", "checkpoint/test_checkpoint_strangers.py -k folders"),
    Fault("checkpoint/restore.py", "        check(name, saved[source], like[name])", "        pass",
          "huge arrays are read", "checkpoint/test_checkpoint_strangers.py -k safetensors"),
    Fault("pure/serializers.py", "            if wanted != found:", "            if False:",
          "codes of another format are read", "pure/test_serializers.py -k other_formats"),
    Fault("checkpoint/convert.py", "if isinstance(like, Blocks) and jax.tree", "if False and jax.tree",
          "codes are dequantized and quantized again", "checkpoint/test_checkpoint.py -k codes_stay"),
    Fault("checkpoint/kernels.py", "(i + 1).astype(dtype)", "i.astype(dtype)",
          "the product of momenta is a step behind", "checkpoint/test_checkpoint.py -k nadam_from_adamw"),
    Fault("checkpoint/kernels.py", "int(own[MICRO_STEP]) >= every", "int(own[MICRO_STEP]) > every",
          "a window that never ends", "checkpoint/test_checkpoint.py -k too_long"),
    Fault("checkpoint/restore.py", "(hyper or not name.startswith(", "(True or not name.startswith(",
          "the saved rate wins", "checkpoint/test_checkpoint_hyper.py -k hyperparameters"),
    Fault("checkpoint/stateful_layout.py",
          "current.slots.get(name, {}) | tree for", "current.slots.get(name, {}) for",
          "what was not saved is left from before", "checkpoint/test_checkpoint_facade.py -k 'adamw_into and ema'"),
    Fault("checkpoint/conventions.py", "return mine / theirs", "return 1.0",
          "a momentum without its rate", "checkpoint/test_checkpoint_optax.py -k 'momentum and keras'"),
    Fault("checkpoint/conventions.py", "if self.saved_rate is not None:", "if False:",
          "the kernel's rate in the place of Keras's", "checkpoint/test_checkpoint_keras.py -k saved_rate"),
    Fault("checkpoint/optax.py", "x * float(node.mini_step)", "x",
          "a mean taken for a sum", "checkpoint/test_checkpoint_optax.py -k window"),
    Fault("checkpoint/keras.py", "step, micro = divmod(int(flat[STEP]), every)", "step, micro = int(flat[STEP]), 0",
          "calls taken for updates", "checkpoint/test_checkpoint_keras.py -k accumulation"),
    Fault("engine/native/packed_operands.py", "x.dtype) for x in unpack.outputs", "0) for x in unpack.outputs",
          "no loop works within a buffer", "packing/test_flat.py -k 'within_the_buffer and adamw-step'"),
    Fault("engine/native/packed_operands.py", "start += x.shape[0]", "start += max(x.shape[0] - 1, 0)",
          "the arrays of a buffer overlap", "packing/test_flat.py -k 'equals_tree and Lamb'"),
    Fault("engine/native/packed_operands.py", "and outside == [pack]", "and outside",
          "what a loop wrote into a buffer is not known to other readers", "packing/test_flat.py -k needed_elsewhere"),
    Fault("engine/native/lower.py", "    sink(trace, partners)", "    None",
          "a guard unpacks the buffer", "packing/test_flat.py -k 'within_the_buffer and adamw-within'"),
    Fault("engine/native/unpack.py", "native = many and not", "native = False and not",
          "no two kernels of a packed loss are equal", "engine/native/test_unpack.py -k equal_kernels"),
    Fault("engine/native/unpack.py", "[at], [at + size]", "[at - 1], [at + size - 1]",
          "a large array is sliced beside its place", "engine/native/test_unpack.py -k 'every_type and float32'"),
    Fault("engine/native/unpack.c", "i++, at += 2", "i++", "every array has the place of the first one",
          "engine/native/test_unpack.py -k 'every_type and float32'"),
    Fault("packing/trees.py", "axis=1 - axes[0]", "axis=1",
          "rows taken for columns", "engine/native/test_unpack.py -k columns"),
    Fault("engine/native/ir.py", "== INDEX:", "is None:",
          "arrays of one shape are one loop, if they are quantized",
          "engine/native/test_native.py -k arrays_of_one_shape"),
    Fault("engine/native/phase.py", "concatenate([words(known[x]) for x in column]).reshape(count, -1)",
          "jnp.stack([words(known[x]) for x in column])",
          "hundreds of tiny programs for hundreds of arrays", "engine/native/test_native.py -k tells_arrays_apart"),
    Fault("engine/slot_packing.py", "if options.flat_state is not None:", "if options.flat_state:",
          "slots are packed where the user said no", "packing/test_flat.py -k test_where_it_would_be_slower"),
    Fault("stateful/wrappers.py", "self._owners.update(", "dict(",
          "a group is asked for the wrapper's name of a variable", "stateful/test_wrappers.py -k one_name"),
    Fault("stateful/wrappers.py", "            optimizer._put(part)", "            pass",
          "weights of a wrapper do not reach its groups", "stateful/test_wrappers.py -k both_sides"),
    Fault("stateful/multi.py", "with_slots(part._replace(scalars=scalars), slots)",
          "with_slots(part._replace(scalars=scalars, slots={}), slots)",
          "slots of variables that the wrapper lacks are lost", "stateful/test_wrappers.py -k restoring_keeps"),
    Fault("stateful/registry.py", "            state = state._replace(slots={})", "            pass",
          "a pickle has the states of groups twice", "stateful/test_wrappers.py -k once"),
    Fault("stateful/transactions.py", 'self._own_state() if place[0] == "slots"', 'self._kept if place[0] == "slots"',
          "what is written to a packed slot is lost", "packing/test_flat.py -k until_somebody_looks"),
    Fault("engine/pipeline.py", "{}, scalars, state.slots.like(trees) if isinstance(state.slots, Packed) else trees)",
          "{}, scalars, trees)", "packed slots come out of a step as trees", "packing/test_flat.py -k only_if_asked"),
    Fault("engine/native/call.py", "numbers[k : k + AT_ONCE]", "numbers[:AT_ONCE]",
          "every call has the loops of the first", "engine/test_thresholds.py -k more_arrays_than"),
    Fault("pure/kernel.py", "return hash(self.program)", "return id(self)",
          "a kernel equals itself alone", "pure/test_kernel_values.py -k 'pickle_is_equal and rule'"),
    Fault("engine/compiled.py", "jax.jit(functools.partial(narrow_update, program))", "jax.jit(program.update)",
          "updates have the dtype of the arithmetic", "pure/test_kernel_values.py -k 'of_the_gradients and rule'"),
    Fault("engine/core.py", "s.get(name, x) for s, x in", "x for s, x in",
          "no slot ever changes", law("accumulation_equals_mean", "SGD-keras")),
    Fault("stateful/transactions.py", 'object.__setattr__(self, "_kept", kept)', "pass",
          "what is written to unpacked slots is lost", "packing/test_flat.py -k until_somebody_looks"),
    Fault("stateful/transactions.py", 'return self._own_state() if place[0] == "slots" else self._kept',
          "return self._state",
          "a look at the count unpacks the slots", "packing/test_flat.py -k until_somebody_looks"),
    Fault("stateful/transactions.py", "self._restore(before)", "pass",
          "what a failed build made is left", "stateful/test_custom.py -k leaves_everything"),
    Fault("stateful/state_views.py", "else {k: tree.get(k, absent) for k in paths}", "else tree",
          "a step of some variables gets the slots of all", "stateful/test_optimizer.py -k variables_join"),
    Fault("engine/state_check.py", "[n for n in kept if n not in found]", "[]",
          "a state of another optimizer is taken", "project/test_bad_input.py -k 'test_pure and another'"),
    Fault("engine/slot_packing.py",
          "return alone and", "return", "slots of arrays on many devices are gathered on one",
          "packing/test_flat.py -k several_devices"),
    Fault("checkpoint/torch.py", "return tuple(axes or (1, 0))", "return tuple(range(ndim))",
          "torch's axes taken for ours", "checkpoint/test_checkpoint_torch.py -k without_torch"),
    Fault("engine/plan.py", "jax.eval_shape(unpacked, state.slots)", "unpacked(state.slots)",
          "no plan for slots in buffers", "packing/test_flat.py -k plan_is"),
    Fault("engine/native/render_c.py", "len(self.tiles) * (loop.block or 0) > TILES", "False",
          "long rows overflow a thread's stack", "engine/native/test_native.py -k long_rows"),
    Fault("engine/native/build.py", "    _warn(str(error))", "    pass", "XLA runs instead of loops without a word",
          "engine/native/test_native.py -k says_why"),
    Fault("engine/native/build.py", 'if action == "error":', "if False:", "the tests run without loops",
          "engine/native/test_native.py -k 'wants_no_fallback and error'"),
    Fault("engine/plan.py", "unavailable() if where", '"" if where',
          "a plan promises loops that do not compile", "engine/native/test_native.py -k says_why"),
    Fault("engine/native/fusion.py", "return math.prod(x.shape) == math.prod(out.shape)", "return False",
          "an axis of length 1 has no sums natively", "engine/native/test_native_loop.py -k length_1"),
    Fault("engine/native/loop.py", "out not in alias and scope(e.inputs[0]) != ELEMENT", "False",
          "a sum of sums counts each of them for each element",
          "engine/native/test_native.py -k 'every_extent and sums'"),
    Fault("engine/native/loop.py", "(op.scope == BLOCK and ELEMENT in some)", "False",
          "a pass may give a block the number of one element", "engine/native/test_native_loop.py -k each_rule"),
    Fault("stateful/custom/hooks.py", "if path := before.changed(Attributes(self.optimizer, *inner)):", "if False:",
          "a count in an attribute stays at 1", "stateful/test_people.py -k 'hooks_change_is_refused and Counts'"),
    Fault("stateful/custom/steps.py", "if overridden(cls, DECAYS):", "if False:",
          "an overridden decay is never called", "stateful/test_overrides.py -k 'keras_s_effect and DecayTwice'"),
    Fault("stateful/custom/scoped.py", "if overridden(type(self), CALLS) and not self._mapped_variables:", "if False:",
          "an overridden `apply` is bypassed", "stateful/test_overrides.py -k 'every_face and Applied and stateless'"),
    Fault("stateful/custom/api.py", "refuse_overrides(cls, without_effect(cls, cls._runs_rule))", "pass",
          "a method without effect is accepted",
          "stateful/test_overrides.py -k 'refused and Optimizer and _update_step'"),
    Fault("stateful/custom/overrides.py", "NEVER_CALLED | NOT_BY_A_RULE if", "NEVER_CALLED if",
          "a rule would never call the method", "stateful/test_overrides.py -k what_a_rule_would_not_call"),
    Fault("stateful/custom/steps.py", "return value_of(self.learning_rate)", "pass",
          "an overridden `learning_rate` is not the rate of the step",
          "stateful/test_overrides.py -k 'keras_s_effect and HalfAttribute'"),
    Fault("stateful/custom/steps.py", ".keys() - {*OPTION_SLOTS}", ".keys()",
          "a step that is handed on takes the average for a slot of the rule",
          "stateful/test_people_laws.py -k 'handed_on and average'"),
    Fault("stateful/custom/api.py", "            array = device_put_like(array, h.read())", "            pass",
          "the slots of a class are on one device", "stateful/test_people_laws.py -k 'sharded and Keras3'"),
    Fault("language/options.py", "// k - 1) * k + (k - 1)", "// k - 1) * k",
          "a schedule of calls is late by a window", "interop/test_interop_keras.py -k 'schedule_says and pure'"),
    Fault("stateful/custom/inner.py", "                adopt(self, x, path)", "                pass",
          "variables among the attributes are not state",
          "stateful/test_people.py -k 'variables_among and OurVariables'"),
    Fault("stateful/custom/older_names.py", 'return f"{name}_of_hooks" if name in OPTIONS else name', "return name",
          "a hyperparameter of TF 2 is taken for an option", "stateful/test_older_classes.py -k test_tf_2"),
    Fault("stateful/custom/steps.py", "_step.set((self.view(STEP).value, itertools.count()))",
          "_step.set((0, itertools.count()))",
          "the same random numbers in every step", "interop/test_tensorflow_names.py -k random_numbers"),
    Fault("interop/tensorflow/arrays.py", "jnp.linalg.norm(x.reshape(-1), 2", "jnp.linalg.norm(x, 2",
          "NumPy's spectral norm for TensorFlow's", "interop/test_tensorflow_names.py -k 'tensorflow_s and vector'"),
    Fault("interop/tensorflow/control.py", "for k, x in zip(known, values, strict=True):", "for k, x in ():",
          "what a branch assigns is lost", "interop/test_tensorflow_names.py -k branches_may_assign"),
    Fault("interop/keras/adapter.py", 'if overrides(type(self), "apply"):', "if False:",
          "an overridden `apply` is bypassed in `fit`", "stateful/test_overrides.py -k 'called_in_fit and True'"),
]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="the numbers of the faults to plant")
    parser.add_argument("--write", action="store_true", help="write the table into tests/README.md")
    chosen = parser.parse_args(arguments)
    numbered = [(n, fault) for n, fault in enumerate(FAULTS, 1) if chosen.only is None or n in chosen.only]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder).resolve())
        broken = [test for test in together(fault.command for _, fault in numbered) if run(copy, test) != "passes"]
        for test in broken:
            print(f"does not pass without any fault: {test}")
        missed = [n for n, fault in numbered if not caught(copy, n, fault)]
    minutes = (time.perf_counter() - started) / 60
    print(f"{len(numbered) - len(missed)} of {len(numbered)} faults were caught in {minutes:.0f} min. Missed: {missed}")
    if chosen.write:
        PAGE.write_text(page())
    return 1 if broken or missed else 0


def copied(folder: Path) -> Path:
    """The project in `folder`, as it is now: what git knows of, with what is changed.

    Raises:
        RuntimeError: if Python, run there, would import the package from anywhere else: nothing planted would show.
    """
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    where = "import jaxopt_keras; print(jaxopt_keras.__file__)"
    found = subprocess.check_output([sys.executable, "-c", where], cwd=folder, env=environment(folder), text=True)
    if folder not in Path(found.strip()).resolve().parents:
        raise RuntimeError(f"The tests would import {found.strip()}, which is not in {folder}.")
    return folder


def environment(copy: Path) -> dict[str, str]:
    """For Python in `copy`. It writes no bytecode, which would pass for fresh if a file changed twice in a second."""
    wide = {"COLUMNS": "500"}  # so that pytest's summary has room for why a test failed
    return os.environ | wide | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def together(tests: Iterable[str]) -> list[str]:
    """The same tests in one run for each file, since most of the time of a short run is its start."""
    files: dict[str, set[str]] = {}
    for test in tests:
        file, *expression = shlex.split(test)
        files.setdefault(file, set()).add(f"({expression[1]})" if expression else "")
    return [file if "" in each else f"{file} -k '{' or '.join(sorted(each))}'" for file, each in files.items()]


def caught(copy: Path, number: int, fault: Fault) -> bool:
    """Plants one fault in `copy`, runs its test, and takes the fault out again."""
    path, started = copy / "jaxopt_keras" / fault.file, time.perf_counter()
    right = path.read_text()
    path.write_text(fault.planted)
    try:
        outcome = run(copy, fault.command)
    finally:
        path.write_text(right)
    caught = outcome.startswith("fails")
    seconds, verdict = time.perf_counter() - started, "caught" if caught else "MISSED"
    how = "" if outcome == "fails" else f" (its test {outcome})"
    print(f"{number:3} {verdict}  {seconds:4.1f} s  {fault.file}: {fault.meaning}{how}", flush=True)
    return caught


def run(copy: Path, test: str) -> str:
    """The result of a test: it fails only if it ran, since one that cannot be found, imported or set up proves nothing.

    By what it fails is said where it is neither an assertion nor an exception that was expected in vain.
    """
    command = f"{sys.executable} -m pytest -x -q -p no:cacheprovider -p no:xdist {test}"
    done = subprocess.run(command, shell=True, cwd=copy, env=environment(copy), capture_output=True, text=True)
    summary = (done.stdout.splitlines() or [""])[-1]
    if done.returncode == 0:
        return "passes"
    if done.returncode == 1 and re.search(r"\d+ failed", summary) and not re.search(r"\d+ error", summary):
        how = re.search(r"^FAILED .*? - ([\w.]+):", done.stdout, re.MULTILINE)
        return "fails" if how is None or how[1] in ("AssertionError", "Failed") else f"fails by {how[1]}"
    return f"does not run: exit code {done.returncode}, {(summary or done.stderr)[-300:]!r}"


def table() -> str:
    """For a reader."""
    lines = ["| | file | right | wrong | | caught by |", "| --- | --- | --- | --- | --- | --- |"]
    for number, fault in enumerate(FAULTS, 1):
        right, wrong = (f"`{code}`".replace("|", "\\|") if code else "" for code in (fault.right, fault.wrong))
        lines.append(f"| {number} | {fault.file} | {right} | {wrong} | {fault.meaning} | `{fault.command}` |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """`tests/README.md` with the table between its marks."""
    before, _, after = PAGE.read_text().split(MARK)
    return f"{before}{MARK}\n\n{table()}\n{MARK}{after}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
