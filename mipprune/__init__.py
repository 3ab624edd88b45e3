"""mipprune: prune PyTorch networks by optimisation."""
