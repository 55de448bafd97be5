"""How far each operation can stretch a difference of its inputs: one rule an ATen operation.

The table of the rules stands in the family's BOUNDS.md; a test compares it with
:mod:`robustcore.lipschitz.rules.table`. A rule's docstring says what bounds it in l2, and after a
bar what is refused.
"""
