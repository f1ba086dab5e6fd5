"""Checkpoints out, weights in, and the nnU-Net side of both."""
