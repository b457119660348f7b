"""What the server makes of the rows that users report: checked, combined, a step of rho."""
