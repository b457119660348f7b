"""One run: its configuration, its problem, what is measured of it, and what it leaves behind."""
