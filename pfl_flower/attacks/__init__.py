"""What a strategic user reports: gradient attacks, model attacks, data poisoning."""
