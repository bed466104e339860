"""Studies: data x starts x algorithms x partitions x tasks x seeds, from one typed TOML file."""

from fedstart.study.loading import load, presets
from fedstart.study.running import failures, run
from fedstart.study.schema import Study
from fedstart.study.work import Progress

__all__ = ["Progress", "Study", "failures", "load", "presets", "run"]
