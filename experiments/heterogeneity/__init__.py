"""Users who differ: what taking part pays them, and what an attacker takes, by lam."""
