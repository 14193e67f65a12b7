"""Fixtures of tests of tasks."""

from finetune_cases import job

__all__ = ["job"]
