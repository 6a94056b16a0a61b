"""Tables, figures and pages: everything here reads a results dict and the run folder only."""

from fedcats.report.html import write_report
from fedcats.report.terminal import Progress, print_summary

__all__ = ["Progress", "print_summary", "write_report"]
