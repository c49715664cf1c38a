"""Contracts of operations: JSON Schemas, what they demand of an input, and what a new one would break.

dialect.py   where subschemas are and what references mean      bounds.py    what a check can cost; refused without
check.py     one schema, ready to be applied                    explain.py   where an input breaks it
examiner.py  inputs of the gateway, large ones elsewhere        examined.py  the process they are checked in
"""

from registry.contracts.bounds import SCHEMA_BYTES_MAX
from registry.contracts.check import Contract
from registry.contracts.dialect import pointer
from registry.contracts.examiner import Examiner
from registry.contracts.explain import BREACHES_MAX

__all__ = ["BREACHES_MAX", "SCHEMA_BYTES_MAX", "Contract", "Examiner", "pointer"]
