"""A terminal that remembers what it was sent, and can say what stands on its screen."""

from __future__ import annotations

import re
from io import StringIO


class Terminal(StringIO):
    """Knows as much as progress bars need: carriage return, newline, one line up, and no colours."""

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """Its lines, without spaces at the end."""
        lines: list[list[str]] = [[]]
        row = column = 0
        for found in re.finditer(
            r"\x1b\[A|\x1b\[[\d;?]*[A-Za-z]|.|\n", self.getvalue().replace("\r\n", "\n"), re.DOTALL
        ):
            sent = found[0]
            if sent == "\x1b[A":
                row = max(row - 1, 0)
            elif sent == "\r":
                column = 0
            elif sent == "\n":
                row, column = row + 1, 0
                lines += [[] for _ in range(row - len(lines) + 1)]
            elif not sent.startswith("\x1b"):
                line = lines[row]
                line += " " * (column - len(line) + 1)
                line[column] = sent
                column += 1
        return ["".join(line).rstrip() for line in lines]
