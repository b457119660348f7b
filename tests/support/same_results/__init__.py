"""What a checkout computes, recorded and compared number by number."""
