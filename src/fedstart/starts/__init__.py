"""Starts: ways to begin that are not federated methods, one per file, and `Start`, the weights with their card."""

from fedstart.starts._start import Beginning, Card, Start

__all__ = ["Beginning", "Card", "Start"]
