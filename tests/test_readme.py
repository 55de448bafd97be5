"""The READMEs: Python runs, commands parse, links lead somewhere, figures are measured ones."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robustcore.command.main import build_parser
from robustcore.masking.rules import table as rule_table

ROOT = Path(__file__).parents[1]
FAMILIES = [*ROOT.glob("robustcore/*/README.md")]
GUIDES = [*ROOT.glob("robustcore/*/*.md")]
READMES = sorted([ROOT / "README.md", ROOT / "bench" / "README.md", *GUIDES])
BLOCK = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
RESULTS = re.compile(r"bench/results/\w+\.md|(?<=\()results/\w+\.md")
FIGURE = re.compile(r"((?:\d[\d.]* / )*\d[\d.]*)( ms| s| MiB|x)\b")  # not the .x of a kernel


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """(line, needed module, text) of the fenced blocks."""
    text = path.read_text()
    for match in BLOCK.finditer(text):
        if match[2] in languages:
            yield text.count("\n", 0, match.start(3)), match[1], match[3]


@pytest.mark.parametrize("readme", [p for p in READMES if any(blocks(p, "python"))], ids=name)
def test_python_runs(readme, tmp_path):
    """All blocks of a file are one program, at the lines where they stand in it."""
    pytest.importorskip("matplotlib")
    program = ""
    for line, needed, text in blocks(readme, "python"):
        if needed is None or importlib.util.find_spec(needed):
            program += "\n" * (line - program.count("\n")) + text
    script = tmp_path / "readme.py"
    script.write_text(program)
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def commands(readme):
    """The arguments of `robustcore` commands: in shell blocks, and in the text with options."""
    lines = re.findall(r"`(robustcore [^`]* --[^`]*)`", readme.read_text())
    for _, _, text in blocks(readme, "sh"):
        lines += text.replace("\\\n", " ").splitlines()
    for line in lines:
        for command in re.split(r"&&|\||;", line):
            words = shlex.split(command, comments=True)
            if words[:1] == ["robustcore"] or "-m robustcore" in command:
                yield words[words.index("robustcore") + 1 :]


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_commands_parse(readme):
    for arguments in commands(readme):
        assert callable(build_parser(arguments).parse_args(arguments).run)


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_links(readme):
    for target, anchor in LINK.findall(readme.read_text()):
        if "://" not in target:
            path = (readme.parent / target).resolve() if target else readme
            assert path.exists(), target
            assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_paths():
    """Files that the READMEs and the docstrings name exist."""
    for path in [*READMES, *ROOT.glob("robustcore/**/*.py")]:
        for named in re.findall(r"`((?:csrc|robustcore|tests|bench)/[\w./]*\w)`", path.read_text()):
            assert (ROOT / named).exists(), f"{name(path)}: {named}"


def test_lengths():
    """A README is read in one go."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    for guide in GUIDES:
        assert len(guide.read_text().splitlines()) <= 180, name(guide)
    for readme in FAMILIES:
        assert len(readme.read_text().splitlines()) >= 70, name(readme)


def measured(files):
    """The numbers of result files, by unit; "x" are those without one."""
    numbers = {"ms": [], "s": [], "MiB": [], "x": []}
    for file in files:
        for number, unit in re.findall(r"(\d+\.\d+|\d+)(?: (ms|MiB)\b)?", file.read_text()):
            numbers[unit or "x"].append(float(number))
    numbers["s"] = [ms / 1000 for ms in numbers["ms"]]
    return numbers


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_figures(readme):
    """Every figure is one of the results files that its row, or its section, links to."""
    for section in re.split(r"^## ", readme.read_text(), flags=re.MULTILINE):
        for row in section.splitlines():
            files = {Path(f).name for f in RESULTS.findall(row) or RESULTS.findall(section)}
            figures = FIGURE.findall(row)
            assert files or not figures, f"which file has this? {row}"
            numbers = measured([ROOT / "bench" / "results" / f for f in files])
            for values, unit in figures:
                for value in values.split(" / "):
                    digits = len(value.partition(".")[2])
                    error = min(abs(n - float(value)) for n in numbers[unit.strip()])
                    assert error <= 0.501 * 10**-digits, f"{value}{unit}, not in {files}: {row}"


def test_rules_of_masking():
    """The table of rules is the code's: print(robustcore.masking.rules.table.markdown())."""
    text = (ROOT / "robustcore" / "masking" / "README.md").read_text()
    assert rule_table.markdown() in text
