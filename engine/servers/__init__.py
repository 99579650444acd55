"""Servers: places that execute work, behind one contract whatever they speak."""
