"""Attack x defence x regulariser."""
