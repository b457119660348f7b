"""Ways to personalise: whom the same attacks hurt, rho or the users."""
