"""The rules by which a build finds torch and nvcc and picks GPU architectures (csrc/packaging)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import robustcore_toolchain as toolchain
from robustcore_toolchain import BuildError

CHECKOUT = Path(__file__).parents[1]
OPTIONS = ("CUDA", "CUDA_ARCHS", "TORCH_DIR")
GPU_QUERY = toolchain.visible_gpu_archs


def write(path: Path, text: str = "", *, executable: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755 if executable else 0o644)
    return path


def install_torch(site: Path, version: str, cuda: str | None = None) -> Path:
    # As torch writes it; the tail must not be mistaken for the version.
    text = (
        f"__all__ = ['__version__', 'cuda']\n__version__ = '{version}'\n"
        f"cuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    )
    return write(site / "torch" / "version.py", text).parent


def install_nvcc(path: Path) -> Path:
    return write(path, "#!/bin/sh\n", executable=True)


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """A machine with no nvcc, no GPU and no wish about CUDA."""
    monkeypatch.setattr(toolchain, "NVCC_DEFAULT", tmp_path / "absent" / "nvcc")
    monkeypatch.setattr(toolchain, "visible_gpu_archs", list)
    for name in ("CUDACXX", "CUDA_HOME", *(f"ROBUSTCORE_{n}" for n in OPTIONS)):
        monkeypatch.delenv(name, raising=False)


class TestTorch:
    @pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.1+cu130", "3.0.0a0+git1f"])
    def test_found(self, tmp_path, version):
        torch = install_torch(tmp_path, version)
        assert toolchain.find_torch([tmp_path / "empty", tmp_path]) == torch

    def test_first_site_wins(self, tmp_path):
        first = install_torch(tmp_path / "a", "2.11.0")
        install_torch(tmp_path / "b", "2.12.0")
        assert toolchain.find_torch([tmp_path / "a", tmp_path / "b"]) == first

    def test_none(self, tmp_path):
        (tmp_path / "torch").mkdir()  # a leftover folder is no torch
        assert toolchain.find_torch([tmp_path]) is None

    @pytest.mark.parametrize("version", ["2.9.1+cu128", "1.13.1"])
    def test_too_old(self, tmp_path, version):
        install_torch(tmp_path, version)
        with pytest.raises(BuildError, match=rf"torch {version.split('+')[0]}.*needs torch>=2\.10"):
            toolchain.find_torch([tmp_path])

    def test_unreadable_version(self, tmp_path):
        write(tmp_path / "torch" / "version.py", "version = 2\n")
        with pytest.raises(BuildError, match=r"version\.py"):
            toolchain.find_torch([tmp_path])

    def test_chosen_folder_comes_first(self, tmp_path):
        install_torch(tmp_path / "site", "2.13.0")
        chosen = install_torch(tmp_path / "chosen", "2.11.0")
        environ = {"ROBUSTCORE_TORCH_DIR": str(chosen)}
        assert toolchain.find_torch([tmp_path / "site"], environ) == chosen
        install_torch(tmp_path / "chosen", "2.9.0")
        with pytest.raises(BuildError, match=r"needs torch>=2\.10"):
            toolchain.find_torch([tmp_path / "site"], environ)

    def test_chosen_folder_without_torch(self, tmp_path):
        with pytest.raises(BuildError, match=r"ROBUSTCORE_TORCH_DIR is .* no torch package"):
            toolchain.find_torch([], {"ROBUSTCORE_TORCH_DIR": str(tmp_path)})

    @pytest.mark.parametrize(("cuda", "has"), [("13.0", True), (None, False)])
    def test_cuda_build(self, tmp_path, cuda, has):
        assert toolchain.has_cuda(install_torch(tmp_path, "2.13.0", cuda)) is has

    def test_cuda_build_of_this_torch(self):
        assert toolchain.has_cuda(Path(torch.__file__).parent) is torch.backends.cuda.is_built()

    def test_target_is_this_environment(self):
        assert toolchain.find_torch(toolchain.target_sites()) == Path(torch.__file__).parent

    def test_versions_are_stated_alike(self):
        # The minimum is written in four places, each in its reader's own form.
        major, minor = toolchain.TORCH_MINIMUM
        cmake = (CHECKOUT / "CMakeLists.txt").read_text()
        requirement = f"torch>={major}.{minor}"
        assert requirement == toolchain.TORCH_REQUIREMENT
        assert f'"{requirement}"' in (CHECKOUT / "pyproject.toml").read_text()
        assert f"TORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000ULL" in cmake
        assert f'RC_TORCH_TARGET=\\"{major}.{minor}\\"' in cmake


class TestNvcc:
    def test_order(self, tmp_path, monkeypatch):
        cudacxx = install_nvcc(tmp_path / "cudacxx" / "my-nvcc")
        home = install_nvcc(tmp_path / "home" / "bin" / "nvcc")
        on_path = install_nvcc(tmp_path / "path" / "nvcc")
        default = install_nvcc(tmp_path / "default" / "nvcc")
        wheel = install_nvcc(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
        monkeypatch.setattr(toolchain, "NVCC_DEFAULT", default)
        environ = {
            "CUDACXX": str(cudacxx),
            "CUDA_HOME": str(tmp_path / "home"),
            "PATH": str(on_path.parent),
        }
        search = [str(tmp_path / "empty"), str(tmp_path / "site")]
        order = []
        while found := toolchain.find_nvcc(environ, search):
            order.append(found)
            environ.pop("CUDACXX", None)
            found.unlink()
        assert order == [cudacxx, home, on_path, default, wheel]

    def test_cudacxx_may_be_a_name_on_path(self, tmp_path):
        nvcc = install_nvcc(tmp_path / "nvcc-13")
        assert toolchain.find_nvcc({"CUDACXX": "nvcc-13", "PATH": str(tmp_path)}, []) == nvcc

    def test_cudacxx_that_is_missing(self, tmp_path):
        with pytest.raises(BuildError, match="CUDACXX is '/nowhere/nvcc'"):
            toolchain.find_nvcc({"CUDACXX": "/nowhere/nvcc", "PATH": str(tmp_path)}, [])

    def test_not_executable(self, tmp_path):
        write(tmp_path / "bin" / "nvcc")
        environ = {"CUDA_HOME": str(tmp_path), "PATH": str(tmp_path / "empty")}
        assert toolchain.find_nvcc(environ, []) is None

    def test_toolkit_root_through_a_wrapper(self, tmp_path):
        # Distributions put a script on PATH, and the toolkit is not where the script is.
        root = tmp_path / "toolkit"
        (root / "bin").mkdir(parents=True)
        nvcc = write(
            tmp_path / "nvcc", f'#!/bin/sh\necho "#\\$ TOP={root}/bin/.." >&2\n', executable=True
        )
        assert toolchain.toolkit_root(nvcc) == root

    def test_known_archs(self, tmp_path):
        text = "#!/bin/sh\nprintf 'sm_120\\nsm_90\\nsm_90a\\nsm_75\\n'\n"
        nvcc = write(tmp_path / "nvcc", text, executable=True)
        assert toolchain.known_archs(nvcc) == [75, 90, 120]

    @pytest.mark.parametrize(
        ("release", "flag"),
        [("13.0", "--compress-mode=size"), ("12.9", "-Xfatbin=-compress-all")],
    )
    def test_compression(self, tmp_path, release, flag):
        text = f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.88'\n"
        nvcc = write(tmp_path / "nvcc", text, executable=True)
        assert toolchain.compression(nvcc) == flag

    def test_broken_nvcc(self, tmp_path):
        nvcc = write(tmp_path / "nvcc", "#!/bin/sh\necho no toolkit; exit 1\n", executable=True)
        with pytest.raises(BuildError, match=r"nvcc --list-gpu-code` failed:\nno toolkit"):
            toolchain.known_archs(nvcc)


class TestSwitch:
    @pytest.mark.parametrize("gpus", [[], [90]])
    @pytest.mark.parametrize("cuda", ["13.0", None])
    def test_values(self, tmp_path, monkeypatch, cuda, gpus):
        torch = install_torch(tmp_path, "2.13.0", cuda)
        monkeypatch.setattr(toolchain, "visible_gpu_archs", lambda: gpus)
        assert toolchain.cuda_wanted("on", torch)
        assert not toolchain.cuda_wanted("off", torch)
        for value in (None, "", "auto"):
            assert toolchain.cuda_wanted(value, torch) == bool(cuda or gpus)
            assert toolchain.cuda_wanted(value, None)

    @pytest.mark.parametrize("value", ["ON", "OFF", "0"])
    def test_anything_else(self, value):
        message = f"ROBUSTCORE_CUDA must be 'auto', 'on' or 'off', got '{value}'"
        with pytest.raises(BuildError, match=message):
            toolchain.cuda_wanted(value, None)


class TestArchs:
    KNOWN = (75, 80, 86, 87, 89, 90, 100, 103, 120)

    @pytest.mark.parametrize(
        "text", ["80 90", "90;80", "80,90", " 80, 90 ", "8.0 9.0", "8.0\n9.0\n8.0\n"]
    )
    def test_parse(self, text):
        assert toolchain.parse_archs(text) == [80, 90]

    @pytest.mark.parametrize("word", ["sm_80", "9x", "8", "8.0.1", "-80", "1200", "90+PTX"])
    def test_parse_error_names_the_culprit(self, word):
        with pytest.raises(BuildError, match="ROBUSTCORE_CUDA_ARCHS must be") as error:
            toolchain.parse_archs(f"80 {word}")
        assert f"got {word!r}" in str(error.value)

    def test_request_overrules_the_gpu(self):
        assert toolchain.choose_archs("90 80", [75], self.KNOWN) == [80, 90]

    def test_request_unknown_to_nvcc(self):
        with pytest.raises(BuildError, match=r"does not know \[70\]"):
            toolchain.choose_archs("70 80", [], self.KNOWN)

    @pytest.mark.parametrize("request_", [None, ""])
    def test_visible_gpus(self, request_):
        assert toolchain.choose_archs(request_, [90, 80, 90], self.KNOWN) == [80, 90]

    @pytest.mark.parametrize(
        ("archs", "ptx"), [([75, 80, 90, 120], 90), ([80], 80), ([80, 86], 86), ([100, 120], 120)]
    )
    def test_ptx_runs_on_what_has_no_code(self, archs, ptx):
        assert toolchain.choose_ptx(archs) == ptx

    def test_gpu_newer_than_nvcc(self):
        assert toolchain.choose_archs(None, [121, 130], self.KNOWN) == [120]

    def test_gpu_older_than_nvcc(self, capsys):
        assert toolchain.choose_archs(None, [61], self.KNOWN) == toolchain.DEFAULT_ARCHS
        assert "none of this machine's GPUs ([61])" in capsys.readouterr().err

    def test_default_without_a_gpu(self, capsys):
        assert toolchain.choose_archs(None, [], self.KNOWN) == [75, 80, 90, 120]
        assert capsys.readouterr().err == ""

    def test_default_drops_what_an_older_nvcc_lacks(self, capsys):
        assert toolchain.choose_archs(None, [], (70, 75, 80, 86, 89, 90)) == [75, 80, 90]
        assert "[120]" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("script", "archs"),
        [
            ("echo 9.0; echo 8.6; echo 9.0", [86, 90]),
            ("echo 'No devices were found'", []),
            ("echo 'cannot reach the driver'; exit 9", []),
            (None, []),
        ],
    )
    def test_gpu_query(self, tmp_path, monkeypatch, script, archs):
        if script is not None:
            write(tmp_path / "nvidia-smi", f"#!/bin/sh\n{script}\n", executable=True)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert GPU_QUERY() == archs


class TestBuildRequirements:
    """What the backend asks pip to install, on top of its fixed requirements."""

    @pytest.fixture
    def machine(self, monkeypatch, tmp_path):
        site, path = tmp_path / "site", tmp_path / "bin"
        path.mkdir()
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.setattr(toolchain, "target_sites", lambda: [site])
        monkeypatch.setattr(toolchain, "nvcc_requirements", lambda: ["an-nvcc"])
        return site, path

    def test_nothing_there(self, machine):
        assert toolchain.build_requirements() == ["torch>=2.10", "an-nvcc"]

    def test_torch_there(self, machine):
        install_torch(machine[0], "2.13.0", "13.0")
        assert toolchain.build_requirements() == ["an-nvcc"]

    def test_both_there(self, machine):
        install_torch(machine[0], "2.13.0", "13.0")
        install_nvcc(machine[1] / "nvcc")
        assert toolchain.build_requirements() == []

    def test_torch_without_cuda(self, machine, monkeypatch):
        install_torch(machine[0], "2.13.0+cpu")
        assert toolchain.build_requirements() == []
        monkeypatch.setenv("ROBUSTCORE_CUDA", "on")
        assert toolchain.build_requirements() == ["an-nvcc"]

    def test_cuda_off(self, machine, monkeypatch):
        monkeypatch.setenv("ROBUSTCORE_CUDA", "off")
        assert toolchain.build_requirements() == ["torch>=2.10"]

    @pytest.mark.parametrize(
        ("system", "processor", "some"),
        [
            ("linux", "x86_64", True),
            ("linux", "aarch64", True),
            ("linux", "ppc64le", False),
            ("darwin", "arm64", False),
        ],
    )
    def test_where_pypi_has_an_nvcc(self, monkeypatch, system, processor, some):
        monkeypatch.setattr("sys.platform", system)
        monkeypatch.setattr("platform.machine", lambda: processor)
        assert bool(toolchain.nvcc_requirements()) == some


class TestResolve:
    """What CMake is told."""

    @pytest.fixture
    def nvcc(self, tmp_path, monkeypatch):
        listing = " ".join(f"sm_{arch}" for arch in (*toolchain.DEFAULT_ARCHS, 103))
        script = f'#!/bin/sh\necho "#\\$ TOP={tmp_path}"; echo {listing}\n'
        nvcc = write(tmp_path / "nvcc", script, executable=True)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return nvcc

    @pytest.mark.parametrize(
        ("cuda", "torch_cuda", "gpus", "archs"),
        [
            ("auto", None, [], ""),
            ("auto", None, [90], "90"),
            ("auto", "13.0", [], "75 80 90 120"),
            ("auto", "13.0", [90], "90"),
            ("on", None, [90], "75 80 90 120"),
            ("off", "13.0", [90], ""),
        ],
    )
    def test_kernels(self, nvcc, tmp_path, monkeypatch, cuda, torch_cuda, gpus, archs):
        install_torch(tmp_path / "site", "2.13.0", torch_cuda)
        monkeypatch.setattr(toolchain, "target_sites", lambda: [tmp_path / "site"])
        monkeypatch.setattr(toolchain, "visible_gpu_archs", lambda: gpus)
        answer = toolchain.resolve(cuda, "")
        assert answer["archs"] == archs
        assert answer["nvcc"] == (str(nvcc) if archs else "")

    def test_no_nvcc(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(toolchain.sys, "path", [])
        install_torch(tmp_path / "site", "2.13.0", "13.0")
        monkeypatch.setattr(toolchain, "target_sites", lambda: [tmp_path / "site"])
        assert toolchain.resolve("auto", "")["nvcc"] == ""
        assert "without the CUDA kernels, since no nvcc was found" in capsys.readouterr().err
        with pytest.raises(BuildError, match="ROBUSTCORE_CUDA=on, but no nvcc found: install"):
            toolchain.resolve("on", "")

    def test_no_torch(self, monkeypatch):
        monkeypatch.setattr(toolchain, "target_sites", list)
        monkeypatch.setattr(toolchain.sys, "path", [])
        with pytest.raises(BuildError, match="no torch found: pip install"):
            toolchain.resolve("off", "")


class TestCommand:
    """The script as CMake runs it."""

    @staticmethod
    def run(*arguments):
        script = CHECKOUT / "csrc" / "packaging" / "robustcore_toolchain.py"
        return subprocess.run(
            [sys.executable, script, *arguments], capture_output=True, text=True, check=False
        )

    def test_without_cuda(self):
        done = self.run("--cuda", "off", "--archs", "")
        answer = json.loads(done.stdout)
        assert answer.pop("torch") == str(Path(torch.__file__).parent)
        assert set(answer.values()) == {""}

    def test_error_is_one_line(self):
        done = self.run("--cuda", "maybe")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            "robustcore: ROBUSTCORE_CUDA must be 'auto', 'on' or 'off', got 'maybe'\n"
        )
