"""The runs of a record: every preset, every study's quick form, and what presets do not reach."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

PRESET_FOLDERS = ("experiments/presets", "pfl_flower/presets")
WEIGHTS = "vgg13_bn-cifar10.pt"
BASE = "digits-squared-l2"
SMALL = "points-per-user=60 rounds=8 evaluate-every=4"
WORDS = {
    "LINEAR": "dataset=synthetic-linear features=5 users=5 strategic-users=4 nu=0.1",
    "LOGISTIC": "dataset=synthetic-logistic features=5 users=5 strategic-users=4 nu=0.1",
    "TWO-LAYER": "local-solver=adam model=two-layer hidden=16",
    "STEP": "local-solver=adam",
    "POISON": "attack=data poisoning-points=100",
    "ALLIES": "strategic-users=9,10",
    "LAST-LIMIT": "attack-model={limit} --seeds 2",
    "ADAM": "server-optimizer=adam server-lr=0.02 estimator=oracle",
    "THEN": f"; {SMALL}",
}
EXTRAS = """
% aggregation=% | sum median trimmed-mean geometric-median krum multi-krum centred-clipping
%-mixing aggregation=% aggregation-mixing=true | sum median trimmed-mean geometric-median krum \
multi-krum centred-clipping
%-squared-l2 attack=% | label-flip sign-flip gaussian little-is-enough inner-product min-max
%-l2 attack=% regularizer=l2 | label-flip sign-flip gaussian little-is-enough inner-product min-max
multi-krum-selected aggregation=multi-krum krum-selected=4
clipping-radius aggregation=centred-clipping clipping-radius=5.0
tolerance aggregation=trimmed-mean aggregation-tolerance=3
strength attack=sign-flip attack-strength=3.0
label-flip-two attack=label-flip ALLIES
little-is-enough-draws attack=little-is-enough ALLIES attack-draws=3
label-flip-step STEP attack=label-flip update-order=simultaneous batch-size=8
linear-cga LINEAR
linear-cga-l2 LINEAR regularizer=l2 equilibrium=true
linear-model LINEAR attack=model equilibrium=true
linear-single-point LINEAR attack=data poisoning=single-point equilibrium=true
linear-sampling LINEAR attack=data poisoning=sampling poisoning-points=50
logistic-cga LOGISTIC
logistic-smooth-l2 LOGISTIC regularizer=smooth-l2 local-solver=sgd batch-size=8
logistic-model LOGISTIC attack=model equilibrium=true
logistic-% LOGISTIC attack=data poisoning=% | sampling indifference matching repeated
logistic-box LOGISTIC attack=data poisoning=matching poisoning-box=true
logistic-integer LOGISTIC attack=data poisoning=matching poisoning-integer=true
logistic-drawn LOGISTIC attack=data poisoning=indifference poisoning-labels=drawn poisoning-draws=3
two-layer-l2 TWO-LAYER regularizer=l2
cnn STEP model=cnn
cnn-steps STEP model=cnn model-frozen=0 local-steps=3 batch-size=8 regularizer=l2
steps STEP local-steps=3 batch-size=8
two-layer-sampling TWO-LAYER THEN TWO-LAYER attack=data poisoning=sampling LAST-LIMIT
batch-adam STEP batch-size=8
batch-sgd local-solver=sgd batch-size=8
simultaneous STEP update-order=simultaneous
simultaneous-l2 local-solver=sgd update-order=simultaneous regularizer=l2
mean reduction=mean points-per-user=60,20
mean-step STEP reduction=mean dtype=float32 points-per-user=60,20
scaled-sum reduction=scaled-sum points-per-user=60,20
two-allies ALLIES
two-targets ALLIES target-shift=1,2
coalition ALLIES coalition=1 server-lr-factor=0.5
oracle estimator=oracle
paper STEP ADAM server-lr-decay=0.99 server-lr-floor=0.005 update-order=simultaneous
sampling POISON poisoning=sampling equilibrium=true
sampling-images POISON poisoning=sampling poisoning-queries=images
indifference POISON poisoning=indifference poisoning-noise=0.1 poisoning-weight=3.0
indifference-drawn POISON poisoning=indifference poisoning-labels=drawn poisoning-queries=uniform \
poisoning-box=true
indifference-start POISON poisoning=indifference STEP initialization=attack-model \
initialization-noise=0.1
matching attack=data poisoning=matching
model-step STEP attack=model
equilibrium-honest equilibrium=true strategic-users=none
equilibrium-smooth-l2 equilibrium=true attack=model regularizer=smooth-l2
participation participation=0.5
participation-rescale participation=0.5 participation-rescale=true regularizer=l2
chunks chunk-users=3
chunks-step STEP chunk-users=3
noisy-labels label-noise=0.3 honest-distance=true
norm-limit max-gradient-norm=50.0
decay server-lr=0.01 server-lr-decay=0.9 server-lr-floor=0.005
three-nodes STEP --nodes 3
seed-7 --seeds 7
"""
"""What presets do not reach: a name, what it changes in ``BASE``, made small, and values for %."""
RESUMED = """
cga
l2-adam STEP ADAM regularizer=l2
poisoned attack=data poisoning=matching
participation participation=0.5
batches STEP batch-size=8 regularizer=smooth-l2
"""
"""Runs that stop half way and are resumed to twice as many rounds."""

Commands = list[list[str]]


class BadInputError(Exception):
    """What was asked cannot be done: one line."""


def run_commands(preset: str, changes: str) -> Commands:
    """Return the commands of ``key=value ... --option ...; ...``; a key's last value counts."""
    commands = []
    for text in " ".join(WORDS.get(word, word) for word in changes.split()).split(";"):
        keys, *options = text.split("--")
        given = [word for option in options for word in f"--{option}".split()]
        settings = dict(pair.split("=", 1) for pair in keys.split()) | {"save-trajectory": "true"}
        pairs = [f"{key}={value}" for key, value in settings.items()]
        commands.append(["run", preset, *given, "--set", *pairs])
    return commands


def changed_runs() -> dict[str, str]:
    """Return the changes of ``BASE`` by the names of items."""
    changed = {}
    for line in EXTRAS.strip().splitlines():
        pattern, _, values = line.partition(" | ")
        for value in values.split() or [""]:
            name, _, changes = pattern.replace("%", value).partition(" ")
            changed[f"extra-{name}"] = f"{SMALL} {changes}"
    for line in RESUMED.strip().splitlines():
        name, _, changes = line.partition(" ")
        half = f"{SMALL} {changes} checkpoint-every=3"
        changed[f"resumed-{name}"] = f"{half} ; {half} rounds=16 resume=auto"
    return changed


def all_items(studies: Sequence[str]) -> dict[str, Commands]:
    """Return the commands of all items of the checkout in the current folder, quick ones first."""
    presets = sorted(path.stem for folder in PRESET_FOLDERS for path in Path(folder).glob("*.toml"))
    if not presets or not studies:
        raise BadInputError(f"{Path.cwd()}: expected a checkout, with presets and studies")
    runs = {f"preset-{preset}": run_commands(preset, "") for preset in presets}
    quick = {name: commands for name, commands in runs.items() if "digits" in name}
    changed = {name: run_commands(BASE, changes) for name, changes in changed_runs().items()}
    weights = Path(os.environ.get("PFL_DATA_DIR", ""), WEIGHTS).absolute()
    network = ["--set", f"embedding-weights={weights}"]
    slow = {
        f"study-{name}": [["run", name, "--quick", *(network if "cifar" in name else [])]]
        for name in sorted(studies, key=lambda name: "cifar" in name)
    }
    return quick | changed | runs | slow


def study_names(listing: str) -> list[str]:
    """Return the names in the table that ``list`` titles ``studies``."""
    names, title = [], ""
    for line in listing.splitlines():
        row = re.match(r"[│|]\s*(\S*)", line)
        if row and title.startswith("studies") and row[1]:
            names.append(row[1])
        elif not row and line.strip() and line.strip()[0].isalpha():
            title = line.strip()
    return names
