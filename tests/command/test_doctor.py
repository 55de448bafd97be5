"""``robustcore doctor``."""

import importlib.metadata
import importlib.util

import pytest
import torch

import robustcore
from robustcore.command import doctor
from robustcore.command.main import main


def test_doctor_says_what_is_there(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    info = robustcore.build_info()
    for part in (info["version"], info["simd"], info["compiler"], torch.__version__):
        assert part in text


def test_doctor_says_how_to_get_what_is_missing(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for extra in ("demo", "bench"):
        assert f"pip install 'robustcore[{extra}]'" in text


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        (["80", "90"], 90, "code for 9.0"),
        (["75", "80"], 86, "code for 8.0"),
        (["86"], 80, None),
        (["80"], 90, None),
        (["75+PTX", "80+PTX"], 90, "PTX for 8.0"),
        (["80", "90+PTX"], 89, "code for 8.0"),
        (["90", "120", "90+PTX"], 100, "PTX for 9.0"),
        (["90+PTX"], 80, None),
        (["90a"], 90, "code for 9.0"),
        ([], 80, None),
    ],
)
def test_which_code_of_a_build_a_gpu_runs(archs, capability, code):
    found = doctor._code_for(archs, capability)
    assert found is None if code is None else found.startswith(code)


@pytest.mark.parametrize(
    ("driver", "gpu", "build", "message"),
    [
        (False, None, {"cuda": True, "cuda_archs": ["80"]}, "driver may be too old"),
        (True, (9, 0), {"cuda": True, "cuda_archs": ["80"]}, "ROBUSTCORE_CUDA_ARCHS=90"),
        (True, (9, 0), {"cuda": False, "cuda_archs": []}, "built without CUDA kernels"),
        (True, (9, 0), {"cuda": False, "cuda_archs": []}, "CUDA=on ROBUSTCORE_CUDA_ARCHS=90 pip"),
        (False, None, {"cuda": False, "cuda_archs": []}, "ROBUSTCORE_CUDA=on pip install"),
        (True, (9, 0), {"cuda": True, "cuda_archs": ["90"]}, None),
        (True, (8, 9), {"cuda": True, "cuda_archs": ["80", "90"]}, "code for 8.0 runs here; tried"),
    ],
)
def test_doctor_on_machines_with_a_gpu(capsys, monkeypatch, driver, gpu, build, message):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: driver)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "NVIDIA Some GPU")
    info = robustcore.build_info() | build
    monkeypatch.setattr(doctor, "build_info", lambda: info)
    monkeypatch.setattr(doctor, "_trial", lambda i: f"tried on {i}")
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    devices = text[text.index("GPU") : text.index("matplotlib")]
    assert (message in devices) if message else ("!" not in devices)


def test_doctor_tries_a_kernel(device):
    if device.type == "cuda":
        assert doctor._trial(0) == "a kernel ran, with the CPU's bits"
    elif not torch.cuda.is_available():
        assert doctor._trial(0).startswith("! a kernel failed: ")
