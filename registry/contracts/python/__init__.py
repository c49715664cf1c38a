"""Python for callers, made of a contract: types.py reads schemas, module.py writes the file.

Own code rather than datamodel-code-generator: that brings fourteen packages (a formatter, a template engine, a type
checker at run time among them) and no typed calls, which are most of what is wanted here.
"""

from registry.contracts.python.module import generate

__all__ = ["generate"]
