"""A comparison as people read it: in a terminal, in a paper, and as one page with figures."""
