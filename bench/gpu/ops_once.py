"""Each op once on the device, compared with the CPU's bits; a row of the table as it is made.

python3 bench/gpu/ops_once.py FILE --device cuda
python3 bench/gpu/ops_once.py FILE --device cuda --touch     # runs alone: under a sanitizer
"""

import torch
from cases import all_cases
from harness import Table, arguments


def bits(t):
    return torch.where(t.isnan(), 0, t), t.isnan()


def distance(got, want):
    """0 where every bit agrees (any NaN is a NaN), else the largest difference over the size."""
    if all(torch.equal(a, b) for a, b in zip(bits(got), bits(want), strict=True)):
        return 0.0
    got, want = got.double(), want.double()
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-30)) or 1e-300


def compare(case, device):
    if got := [t.cpu() for t in case.run(device)]:
        want = case.run(torch.device("cpu"))
        return max(distance(*pair) for pair in zip(got, want, strict=True))
    return 0.0


def main():
    parser = arguments(__doc__)
    parser.add_argument("--touch", action="store_true", help="run, compare nothing")
    args = parser.parse_args()
    table = Table(args.file, ["op", "case", "wanted", "found", "distance"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bad = 0
    for case in all_cases():
        wanted = "equal" if case.exact else "near"
        try:
            if args.touch:
                case.run(args.device)
                continue
            far = compare(case, args.device)
        except Exception as error:  # the next op may still run
            table.row(case.op, case.name, wanted, f"{type(error).__name__}: {error}"[:150], "")
            bad += 1
            continue
        near = far < (2e-2 if "float16" in case.name else 1e-4)
        found = "equal" if far == 0 else "near" if near else "far"
        bad += found == "far" or (case.exact and found != "equal")
        table.row(case.op, case.name, wanted, found, f"{far:.1e}")
    if args.device.type == "cuda":
        torch.cuda.synchronize()
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    main()
