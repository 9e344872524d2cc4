"""A comparison as people read it: in a terminal, in a paper, and as one page with figures."""

from .page import write_report
from .tables import export, session_table, table

__all__ = ["export", "session_table", "table", "write_report"]
