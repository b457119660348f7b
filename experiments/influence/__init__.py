"""What k users can do to rho: the bound, where there is one, beside the largest that was found."""
