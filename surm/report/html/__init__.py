"""The report as one HTML page that needs no server and no network."""

from surm.report.html.page import write
from surm.report.html.view import Source

__all__ = ["Source", "write"]
