"""Puts this folder on sys.path for tests in its subfolders, which share its *_cases.py modules."""
