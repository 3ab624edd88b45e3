"""Shipped with the package: networks to test on, slow references, conformance classes."""
