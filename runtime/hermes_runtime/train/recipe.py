"""What a model is made of: every number of the recipe, and the two recipes there are.

`FULL` made the bundled model; `SMALL` is the same path in seconds, for tests and for trying a change.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The numbers. Two equal recipes and equal sources give equal shards, byte for byte."""

    seed: int = 42
    # data
    mutants_per_function: int = 4
    """Mutants sampled from each function."""
    correct_share: float = 0.15
    """Share of examples whose answer copies a line that is right."""
    empty_evidence_share: float = 0.15
    anchored_evidence_share: float = 0.25
    functions_per_package_max: int = 4000
    """Cap, so that no large package sets the style."""
    modules_max: int = 0
    """Modules taken of each source; 0: all."""
    vocabulary: int = 8192
    sequence_max: int = 512
    """Tokens of the longest example; longer ones are left out."""
    # model: Llama's shape
    hidden: int = 192
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    context: int = 1024
    # optimization
    batch_tokens: int = 4096
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    clip: float = 1.0
    warmup_steps: int = 100
    steps: int = 0
    """Steps in all; 0: as many as the minutes allow, the learning rate falling with the time."""
    input_share: float = 0.15
    """Share of the input positions that also carry a loss."""
    input_weight: float = 0.5
    place_weight: float = 2.0
    """Loss weights of an input position and of the place token; a token of the repaired line is 1."""
    # progress
    log_every_steps: int = 50
    validate_every_steps: int = 500
    validation_examples: int = 192
    checkpoint_every_seconds: float = 180.0


FULL = Recipe()
SMALL = Recipe(
    mutants_per_function=2,
    modules_max=12,
    vocabulary=1024,
    sequence_max=320,
    hidden=32,
    layers=2,
    heads=2,
    intermediate=64,
    context=512,
    batch_tokens=2048,
    warmup_steps=4,
    steps=12,
    log_every_steps=1,
    validate_every_steps=6,
    validation_examples=8,
    checkpoint_every_seconds=0.0,
)
