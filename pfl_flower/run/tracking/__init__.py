"""Who is told of a run's rounds while it goes on, besides ``rounds.csv``."""
