"""Records of runs to statistics, verdicts, tables, figures and one page; reads files only, never a model."""

from surm.report.experiments import ExperimentPlan
from surm.report.page import build, publish

__all__ = ["ExperimentPlan", "build", "publish"]
