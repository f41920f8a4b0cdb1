"""One HTML file of a whole run, to read and to mail: every figure, table and setting, and surfaces that turn.

``write_report`` writes it from the files of a run alone; it needs no PyTorch, and who opens it no network.
"""

from sharpness.report.page import write_report

__all__ = ["write_report"]
