"""Objectives: one file each. Importing the package makes the shipped ones known to `model.objectives`."""

from m5ds.model.objectives import classification, contrastive, masked, sigmoid
