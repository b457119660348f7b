"""Studies: measured once per seed, judged over all, drawn."""
