"""The report: one self-contained page, with its figures and tables, made from a study or run directory alone."""

from fedstart.report.building import build

__all__ = ["build"]
