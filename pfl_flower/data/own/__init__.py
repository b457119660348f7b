"""Points of one's own: tables, arrays, LEAF's users, Hugging Face's data sets, Python objects."""
