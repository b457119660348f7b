"""LOSS (Equations 1 and 3): models, losses, regularisers, and the points that they are made of."""
