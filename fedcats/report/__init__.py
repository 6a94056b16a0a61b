"""Tables, figures and pages: everything here reads a results dict and the run folder only."""

from fedcats.report.estimate import Work
from fedcats.report.html import write_report
from fedcats.report.progress import Progress
from fedcats.report.sweep import print_sweep, sweep_rows, write_sweep_report
from fedcats.report.terminal import print_summary

__all__ = [
    "Progress",
    "Work",
    "print_summary",
    "print_sweep",
    "sweep_rows",
    "write_report",
    "write_sweep_report",
]
