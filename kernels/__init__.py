"""Fused operations on packed multi-modality rows. They know tensors only; each has a plain-PyTorch reference."""
