"""What poisoning methods buy for their labels."""
