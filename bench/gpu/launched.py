"""Which CUDA kernels each row of kernels.py launches: one call each, under torch's profiler.

    python3 bench/gpu/launched.py FILE --device cuda

Without a GPU it is the ops of ours that run: the same code, for a rehearsal.
"""

import torch
from harness import Table, arguments, load, sync
from sizes import GROUPS
from sizes.size import Shapes
from torch.profiler import ProfilerActivity, profile, record_function

ROW = "robustcore row: "


def run(at):
    """The rows that could run, each within a range of its name."""
    for group in GROUPS:
        try:
            for kernel, case, _, fn, _ in group(at):
                sync(at.device)
                with record_function(f"{ROW}{kernel}: {case}"):
                    fn()
                    sync(at.device)
        except Exception as error:  # kernels.py says which
            print(f"{group.__name__}: {type(error).__name__}: {error}"[:200])


def main():
    parser = arguments(__doc__)
    args = parser.parse_args()
    table, short = Table(args.file, ["row", "launched"]), load("sass.py").short
    cuda = args.device.type == "cuda"
    wanted = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]
    with torch.inference_mode(), profile(activities=activities) as found:
        run(Shapes(args.device, args.tiny))
    events = [e for e in found.events() if e.device_type == wanted and "robustcore::" in e.name]
    for row in found.events():
        if not row.name.startswith(ROW) or row.device_type != torch.autograd.DeviceType.CPU:
            continue
        inside = {
            e.name: None
            for e in events
            if row.time_range.start <= e.time_range.start <= row.time_range.end
        }
        table.row(row.name.removeprefix(ROW), "; ".join(map(short, inside)))


if __name__ == "__main__":
    main()
