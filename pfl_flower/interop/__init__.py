"""For other people's Flower apps: an attacking client mod, checked and robust strategies.

A stranger's app has modules of its own named ``clients`` and ``strategies``, which come first where
it runs: nothing here imports ours. Of Flower it takes the public interfaces alone.
"""
