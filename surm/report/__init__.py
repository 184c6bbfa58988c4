"""Records to statistics, verdicts, tables, figures and one page; may import `shared`, `records` and `methods.names`."""

from surm.report.experiments import ExperimentPlan, GridPlan, Plan
from surm.report.page import build, publish
from surm.report.studies import StudyPlan

__all__ = ["ExperimentPlan", "GridPlan", "Plan", "StudyPlan", "build", "publish"]
