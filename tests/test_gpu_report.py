"""bench/gpu: what the tables of a run become, on one page and in a results file."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

GPU = Path(__file__).parents[1] / "bench" / "gpu"
SM90 = (GPU.parent / "results" / "sm90_kernels.md").read_text()
# A kernel whose code promises all of an H200's bandwidth.
KERNEL = re.search(r"^\| `(logsumexp_kernel<float.*?)` \|", SM90, re.M)[1]

WORK = "work\timplementation\tms\ttimes robustcore's\tpeak MiB\n"
TABLES = {
    "stages.tsv": "build\tpassed\t9\nmemcheck\tpassed\t7\nracecheck\texit 1\t3\nsoc\texit 1\t4\n",
    "memcheck.log": "========= ERROR SUMMARY: 0 errors\n",
    "racecheck.log": "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n",
    "soc.log": "Traceback\nValueError: wrong\n",
    "machine.txt": "| NVIDIA-SMI 580.1  Driver Version: 580.159.04  CUDA Version: 13.0 |",
    "ops.tsv": "op\tcase\twanted\tfound\tdistance\nlogsumexp\ta\tequal\tequal\t0\n"
    "logsumexp\tb\tequal\tnear\t1e-7\nattention\tc\tnear\tnear\t1e-7\n",
    "kernels.tsv": "kernel\tcase\tbytes\tms\trate\tshare of the ceiling\t"
    "share of torch's at this size\n"
    "ceiling\tcopy\t4\t1.0\t4300 GB/s\t\t\n"
    "gaussian_noise\t100000 x [3, 32, 32], float32\t4\t1.0\t4000 GB/s\t93 %\t\n"
    "gaussian_noise\t2000 x [3, 224, 224], float32\t4\t1.0\t3500 GB/s\t81 %\t\n"
    "gaussian_noise\t100000 x [3, 32, 32], bfloat16\t4\t1.0\t3000 GB/s\t70 %\t\n"
    "logsumexp\t4096 x 1000, float32\t4\t1.0\t1000 GB/s\t25 %\t31 %\n",
    "launched.tsv": "row\tlaunched\ngaussian_noise: 100000 x [3, 32, 32], float32\tnoise\n"
    f"logsumexp: 4096 x 1000, float32\t{KERNEL}\n",
    "certify.tsv": WORK + "certify: CIFAR, small CNN, n = 9\trobustcore\t2.0\t1.00\t10\n"
    "certify: CIFAR, small CNN, n = 9\tpublished\t9.0\t4.50\t20\n",
    "density.tsv": WORK + "linear_logsumexp with gradient: N 1, float32\trobustcore\t2.0\t1.00\t3\n"
    "linear_logsumexp with gradient: N 1, float32\teager\t2.2\t1.10\t100\n"
    "density training step: vgg\trobustcore\tRuntimeError: out of memory\t\t\n"
    "density training step: vgg\tpublished, two gradients\t2.2\t\t100\n",
    "ncu.csv": "==PROF== Connected\n"
    '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value","Rule Name",'
    '"Rule Type","Rule Description","Estimated Speedup Type","Estimated Speedup"\n'
    + "".join(
        f'"0","void robustcore::(anonymous namespace)::{KERNEL}(robustcore::Args)",{rest}\n'
        for rest in (
            '"GPU Speed Of Light Throughput","Memory Throughput","%","24.5","","","","",""',
            '"Occupancy","Achieved Occupancy","%","12.5","","","","",""',
            '"WarpStateStats","","","","CPIStall","OPT","waits for memory","local","61.0"',
            '"Occupancy","","","","Occupancy","OPT","few blocks","local","9.0"',
        )
    ),
}


@pytest.fixture
def folder(tmp_path):
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(script, *arguments):
    command = [str(part) for part in (sys.executable, GPU / script, *arguments)]
    where = os.environ | {"PYTHONPATH": str(GPU)}
    done = subprocess.run(command, env=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page(folder):
    page = run("summary.py", folder)
    assert "soc exit 1 (4 s)" in page
    assert "ValueError: wrong" in page
    for line in (
        "met: noise of fill_, float32: 81 % (of 2; best 93 %) (wanted >= 80 %)",
        "missed: noise of fill_, bfloat16: 70 % (wanted >= 80 %)",
        "met: certify, small CNN, of the published loop: 4.5x (wanted >= 3x)",
        "not measured: SOC training, of the published: - (wanted >= 3x)",
        "not measured: density step, of the published stable form: - (wanted >= 1.4x)",
        "missed: linear_logsumexp, of eager's memory: 3 % (wanted <= 2 %)",
        "missed: linear_logsumexp, of eager: 1.1x (wanted >= 1.3x)",
        "missed: cases off the CPU's bits: 1 (wanted 0)",
        "missed: compute-sanitizer's errors: 2 (of 2; best 0) (wanted 0)",
        "  logsumexp: b: near 1e-7",
        "density training step: vgg: robustcore RuntimeError: out of memory; "
        "published, two gradients 2.2 ms, 100 MiB",
    ):
        assert line in page.splitlines(), line
    lowest = page.split("lowest first")[1].splitlines()[2]
    assert lowest == "25 % (31 %) logsumexp: 4096 x 1000, float32: 1.0 ms, 1000 GB/s"


def test_the_page_of_nothing(tmp_path):
    assert "not measured: certify" in run("summary.py", tmp_path)


def test_the_results_file(folder):
    run("summary.py", folder)
    page = folder / "summary.md"
    page.write_text(re.sub("^#.*", "# NVIDIA H200; torch 2.11.0", page.read_text(), count=1))
    with tarfile.open(folder / "gpu.tar", "w:gz") as packed:
        for path in [p for p in folder.iterdir() if p.name != "gpu.tar"]:
            packed.add(path, f"./{path.name}")
    readme = folder / "README.md"
    readme.write_text("# A\n\n## On a GPU\n\nold\n\n## Limits\n\nnone\n")
    results = folder / "h200.md"
    for _ in range(2):  # again, over itself
        run("report.py", folder / "gpu.tar", "--results", results, "--readme", readme)
    text = results.read_text()
    assert text.startswith("# Measured on NVIDIA H200; torch 2.11.0, driver 580.159.04\n")
    assert "| noise of fill_, bfloat16 | >= 80 % | 70 % | missed |" in text
    row = f"| logsumexp: 4096 x 1000, float32 | {KERNEL} | 100 % | 25 % | 24.5 |  | 12.5 | waits"
    assert row in text
    assert "| eager | 2.200 ms | 1.10 | 100 MiB |" in text
    assert "| logsumexp | 1 equal, 1 near |" in text
    assert readme.read_text().count("## On a GPU") == readme.read_text().count("## Limits") == 1
    assert (
        "| certify, small CNN, of the published loop | >= 3x | 4.5x | met |" in readme.read_text()
    )
    assert "old" not in readme.read_text()
