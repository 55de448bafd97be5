"""Every public op, as in the tests' examples of a valid call: none can be left out."""

import sys
from pathlib import Path

from cases.case import Case

sys.path.insert(0, str(Path(__file__).parents[3] / "tests"))
from op_calls import CALLS, NEAR, arguments, op_of, run, with_derivatives


def examples():
    for call in CALLS:

        def both(device, call=call):
            results = run(call, arguments(call, device))
            return results + with_derivatives(call, arguments(call, device), 2)

        yield Case(op_of(call), f"{call}, two derivatives", both, op_of(call) not in NEAR)


GROUPS = (examples,)
