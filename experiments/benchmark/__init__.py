"""``python -m experiments benchmark``: what a round costs, as ratios measured in the same run."""
