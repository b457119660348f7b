"""Data poisoning (Sections 4 and 5.3): data whose local optimum is a wanted model."""
