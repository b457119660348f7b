"""Experiments: presets, figures and theorems, each one command."""
