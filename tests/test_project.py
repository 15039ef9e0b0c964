"""The project's own files agree with each other and with what is installed."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import retina_lab

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pins() -> dict[str, str]:
    """Package → pinned version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in found}


def direct() -> list[Requirement]:
    """What the project asks for itself, the extras included."""
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *extras["book"], *extras["test"]]
    return [Requirement(text) for text in texts]


def closure() -> dict[str, str]:
    """Package → installed version of everything that ``.[book,test]`` needs on this machine."""
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in direct()]
    seen: dict[str, frozenset] = {}
    while todo:
        name, extras = todo.pop()
        if extras <= seen.get(name, frozenset()) and name in seen:
            continue
        seen[name] = seen.get(name, frozenset()) | extras
        for text in importlib.metadata.distribution(name).requires or ():
            needed = Requirement(text)
            environments = [{"extra": extra} for extra in (seen[name] or {""})]
            if not needed.marker or any(map(needed.marker.evaluate, environments)):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return {name: importlib.metadata.version(name) for name in seen}


def test_constraints_pin_what_is_needed_and_nothing_else():
    # PyTorch brings CUDA's own packages where it was built for CUDA; those follow its version
    needed = {n for n in closure() if not n.startswith(("nvidia-", "triton", "cuda-"))}
    assert sorted(needed - set(pins())) == []
    assert sorted(set(pins()) - needed) == []


def test_constraints_fit_the_ranges_of_the_project():
    for requirement in direct():
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_what_is_installed_is_what_is_pinned():
    installed = closure()
    different = {
        name: (installed[name], version)
        for name, version in pins().items()
        if installed[name].split("+")[0] != version
    }
    if len(different) > len(installed) / 2:
        pytest.skip("installed without constraints.txt")
    assert different == {}


def test_conda_users_get_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[book,test]"]
    assert all(re.match(r"(python|pip)\b", d) for d in conda), "conda brings Python, pip the rest"
    (python,) = [d.split("=")[1] for d in conda if d.startswith("python=")]
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)


def test_ci_runs_the_test_command_of_the_readme():
    last = (ROOT / ".ci" / "run").read_text("utf-8").rstrip().split("\n")[-1]
    assert last == "exec make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert re.search(r"^\s*make test\b", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("target", ["lab", "book", "test", "bench", "clean"])
def test_make_knows_its_targets(target):
    run = subprocess.run(
        ["make", "--dry-run", "DATASET=my eyes", "PROFILE=full", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    if target == "book":
        assert '--profile full --dataset "my eyes"' in run.stdout
    if target == "clean":
        assert "rm -rf build" in run.stdout
        assert " data" not in run.stdout


def test_make_leaves_dataset_and_profile_to_the_environment_if_not_told():
    run = subprocess.run(
        ["make", "--dry-run", "book"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (command,) = [line for line in run.stdout.split("\n") if "course book" in line]
    assert "--" not in command


def test_citation_and_licences():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == retina_lab.__version__
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:200]
    text = (ROOT / "LICENSE-TEXT").read_text("utf-8")
    assert "Attribution 4.0 International Public License" in text
    assert "Section 8 -- Interpretation." in text


def test_real_images_are_ignored_by_git():
    ignored = ["data/DRIVE/test/images/01_test.tif", "data/STARE/im0001.ppm", "build/x", ".venv/x"]
    run = subprocess.run(
        ["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if run.returncode == 128:
        pytest.skip("not a git checkout")
    assert run.stdout.split() == ignored
