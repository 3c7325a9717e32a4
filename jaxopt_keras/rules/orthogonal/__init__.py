"""The parts of Muon and its kin: coefficients, iterations, shapes, the rule of other parameters, clipping by logits."""
