"""Several processes: the rows of one, whatever their number; a lost rank; complaints once."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from command.runs import forks, runs  # noqa: F401  (fixtures)
from robustcore.smoothing import Smooth
from robustcore.smoothing.distributed import Ranks, SharedSmooth
from smoothing.models import Pixels
from testing import assert_same

processes = pytest.mark.slow  # they import torch, and not for a sanitizer


@processes
@pytest.mark.parametrize("mode", [[], ["--early-stop"], ["--at", "0.1"]])
def test_rows_do_not_depend_on_ranks_and_batches(runs, mode):  # noqa: F811
    options = ["--seed", "5", "--details", "--N", "3000", *mode]
    assert runs.certify(*options, out="one.tsv") == [0]
    for ranks, batch, flight in ((1, 64, 1), (2, 1000, 1), (3, 77, 2), (4, 500, 3)):
        out = f"out{ranks}.tsv"
        more = ["--batch", str(batch), "--in-flight", str(flight)]
        codes = runs.certify(*options, *more, out=out, ranks=ranks)
        assert codes == [0] * ranks, runs.log()
        assert runs.rows(out) == runs.rows("one.tsv")
        assert "seed 5" in runs.log(0)
        assert all(runs.log(rank) == "" for rank in range(1, ranks))


@processes
def test_fewer_images_than_ranks(runs):  # noqa: F811
    options = ["--seed", "5", "--details", "--max", "1"]
    assert runs.certify(*options, out="one.tsv") == [0]
    # 3 samples for 4 ranks: one has none.
    for extra in ([], ["--N0", "3"]):
        assert runs.certify(*options, *extra, out="one.tsv") in ([0], [2])
        runs.certify(*options, *extra, "--overwrite", out="one.tsv")
        codes = runs.certify(*options, *extra, "--overwrite", out="four.tsv", ranks=4)
        assert codes == [0] * 4, runs.log()
        assert runs.rows("four.tsv") == runs.rows("one.tsv")


@processes
@pytest.mark.parametrize("lost", [0, 2])
def test_a_lost_rank_ends_the_run_and_costs_no_row(runs, lost):  # noqa: F811
    slow = dict(model="slow_model", data="many")
    codes = runs.certify("--resume", out="out.tsv", ranks=3, kill=[lost, 0], rows=5, **slow)
    assert codes[lost] == -9
    assert all(code == 2 for rank, code in enumerate(codes) if rank != lost), runs.log(1)
    assert "--resume" in runs.log(1)
    done = runs.text("out.tsv").count("\n") - 1
    assert 0 < done < 200
    assert runs.certify("--resume", out="out.tsv", ranks=2, **slow) == [0, 0]
    seed = runs.seed("out.tsv")
    assert runs.certify("--seed", seed, out="whole.tsv", **slow) == [0]
    assert runs.rows("out.tsv") == runs.rows("whole.tsv")


@processes
def test_complaints_are_made_once_and_rows_before_are_kept(runs):  # noqa: F811
    assert runs.certify("--seed", "5", out="out.tsv", data="bad_pixels", ranks=3) == [2, 2, 2]
    assert runs.log(0).count("image 4: x: got NaN") == 1
    assert runs.log(1) == runs.log(2) == ""
    assert [row.split("\t")[0] for row in runs.rows("out.tsv")[1:]] == ["0", "1", "2", "3"]
    assert runs.certify("--seed", "5", out="out.tsv", ranks=2) == [2, 2]
    assert runs.log(0).count("exists; give another name") == 1
    assert runs.certify("--resume", out="out.tsv", ranks=2, model="none") == [2, 2]
    assert runs.log(0).count("has no attribute 'none'") == 1
    assert runs.certify("--resume", "--N", "500", out="out.tsv", ranks=2) == [2, 2]
    assert runs.log(0).count("was made with") == 1


@processes
def test_a_full_disk_ends_all_ranks(runs):  # noqa: F811
    slow = dict(model="slow_model", data="many")
    codes = runs.certify("--seed", "5", out="out.tsv", ranks=2, most_bytes=2000, **slow)
    assert codes == [2, 2]
    assert "File too large" in runs.log(0)
    assert runs.certify("--resume", out="out.tsv", ranks=2, **slow) == [0, 0]
    assert len(runs.rows("out.tsv")) == 201


@processes
def test_torchrun(runs):  # noqa: F811
    assert runs.certify("--seed", "5", out="one.tsv") == [0]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "robustcore", "certify", "--model", "mine:model", "--data", "mine:data"]
    command += ["--sigma", "0.25", "--N0", "20", "--N", "400", "--device", "cpu", "--seed", "5"]
    run = subprocess.run(
        [*launcher, "--standalone", *command, "--out", "two.tsv"],
        cwd=runs.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert runs.rows("two.tsv") == runs.rows("one.tsv")


def test_without_other_ranks_it_is_smooth():
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = Smooth(Pixels(3), 3, 0.25, seed=1).certify(images, n=500)
    got = SharedSmooth(Pixels(3), 3, 0.25, seed=1).certify(images, n=500)
    for field in ("prediction", "radius", "counts", "counts0"):
        assert_same(getattr(got, field), getattr(expected, field))
    smooth = SharedSmooth(Pixels(3), 3, 0.25)
    assert smooth.certify(images, n=500).seed == smooth.last_seed


@pytest.mark.parametrize(("total", "size"), [(0, 3), (2, 3), (3, 3), (100, 7), (2**40, 5)])
def test_shares_are_a_partition(total, size):
    parts = []
    for rank in range(size):
        ranks = Ranks()
        ranks.rank, ranks.size = rank, size
        parts.append(ranks.share(total))
    assert parts[0].start == 0
    assert parts[-1].stop == total
    assert all(a.stop == b.start for a, b in pairwise(parts))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
