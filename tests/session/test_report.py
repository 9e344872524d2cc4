"""What a session's report looks like."""

from __future__ import annotations

import re

from alphaedit_plugin.session.report import Report


def test_a_report_has_a_row_a_layer_and_no_column_without_numbers():
    report = Report("memit", 20, 2, {4: 0.05, 5: 0.1}, {4: 0.001, 5: 0.002}, {})
    text = repr(report)
    assert re.search(r"4\s+5\s+0\.1\s*\n", text)
    assert re.search(r"5\s+10\s+0\.2\s*\n", text)
    assert "memit: 20 facts in 2 batches" in text
    assert "outside" not in text
