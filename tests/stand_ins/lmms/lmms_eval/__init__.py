"""Stands in for lmms-eval where that is not at hand: the contracts of 0.7.3 that a model and a task meet, for tasks of text and pictures.
Where the real package is installed, tests/test_harnesses.py runs on that."""
