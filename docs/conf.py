"""Sphinx settings: `pip install '.[docs]' && sphinx-build -W docs docs/_build`."""

from importlib.metadata import version as installed

project = "fedstart"
author = "The fedstart developers"
version = release = installed("fedstart")
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fedstart {release}"
myst_heading_anchors = 3
