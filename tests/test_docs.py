"""What the documents say of results.json and of the configuration is so."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import typeguard
from conftest import check_results

from fedcats.cli import after, job
from fedcats.cli.run import AFTER
from fedcats.config import paths
from fedcats.report import drawing, figures
from fedcats.results import Results

DOCS = Path(__file__).parents[1] / "docs"


def module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", ["results.md", "configuration.md"])
def test_a_generated_page_is_that_of_the_code(name: str) -> None:
    made = module("generate").PAGES[name]()
    assert (DOCS / name).read_text() == made, "python docs/generate.py"


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    site, root = module("gather"), DOCS.parent
    config = (root / "mkdocs.yml").read_text(encoding="utf-8")
    names = site.pages()
    for path, name in names.items():
        assert path.suffix != ".md" or f": {name}\n" in config, f"{name}: not in mkdocs.yml"
        text = path.read_text(encoding="utf-8") if path.suffix == ".md" else ""
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
    site.gather(tmp_path / "build/site-source")
    (tmp_path / "mkdocs.yml").write_text(config)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "build/site/index.html").read_text(encoding="utf-8")
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?https?:""", page)


COMMANDS = [
    pytest.param(line.strip(), id=f"{page.name}: {line.strip()[:60]}")
    for page in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    for line in page.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    if re.match(r"(    )?(fedcats|make) (?!=)", line) and page.name != "configuration.md"
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_in_the_documents_is_one_that_is_taken(
    line: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that is known before anything starts; what they do is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "MAX_CHECKED_JOBS", 2)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text("\n\n".join(blocks[:4]))
    program, *words = shlex.split(line, comments=True)
    words = [str(photos) if word == "DIR" else word.replace("=DIR", f"={photos}") for word in words]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (DOCS.parent / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif words[0] in AFTER:
        after.main(words)  # there is no such run; unknown options would leave with SystemExit
    else:
        job.check([paths.read(word) for word in words])


def keys(value: Any, hint: Any) -> set[str]:
    """Every key of every TypedDict in a value, such as ``Model.beta``."""
    if is_typeddict(hint):
        inner = get_type_hints(hint)
        below = (keys(value[key], inner[key]) for key in value)
        return {f"{hint.__name__}.{key}" for key in value}.union(*below)
    if isinstance(value, list) and get_args(hint):  # the configuration may have any
        return set().union(*(keys(one, get_args(hint)[0]) for one in value))
    if isinstance(value, dict) and get_origin(hint) is dict:
        return set().union(*(keys(one, get_args(hint)[-1]) for one in value.values()))
    described = [part for part in get_args(hint) if is_typeddict(part)]  # of a union
    return keys(value, described[0]) if described and isinstance(value, dict) else set()


def every_key(hint: Any) -> set[str]:
    if not is_typeddict(hint):
        return set().union(*map(every_key, get_args(hint)))
    inner = get_type_hints(hint)
    return {f"{hint.__name__}.{key}" for key in inner}.union(*map(every_key, inner.values()))


RUNS = {
    "compare": [
        "rounds=2",
        "hold_out=0.5",
        "validate=true",
        "partition.num_shards=3",
        "strategy.rules=[polyak,fedavg,fedadam,median,scale]",
        "strategy.start=global",
        "attack=scale",
        "attack.clients=[1]",
        "attack.factor=1e9",
        "strategy.max_norm=1000",
        "strategy.on_failure=survivors",
        "paper=cats_dogs",
    ],
    "compare, over seeds": ["seeds=3", "strategy.rules=[ridge]", "reference=[full,same_steps]"],
    "federated": ["strategy.beta=auto", "store.enabled=false"],
    "centralized": [],
    "federated, an endless update": [
        "strategy.rules=[median]",
        "partition.num_shards=3",
        "attack=scale",
        "attack.clients=[1]",
        "attack.factor=1e30",
    ],
    "explain": [
        "hold_out=0.5",
        "validate=true",
        "explain.points=3",
        "explain.orders=2",
        "explain.coalitions=3",
        "privacy=dp",
        "privacy.measure=true",
        "privacy.epsilon=null",
        "privacy.noise=2",
    ],
    "merge": ["merge.rules=[polyak,stock,soup,best,ensemble]", "merge.betas=[0.5]"],
}


@pytest.mark.slow
def test_every_key_is_in_results_of_some_mode_and_no_other(run: Callable[..., Any]) -> None:
    seen: set[str] = set()
    for mode, overrides in RUNS.items():
        _, folder = run(
            f"mode={mode.partition(',')[0]}",
            "runner=local",
            "train.epochs=1",
            *overrides,
            folder=mode,
        )
        seen |= keys(check_results(folder), Results)
    rare = {f"Copy.{key}" for key in ("client", "file")}  # photos in several shards
    rare |= {f"NearDuplicate.{key}" for key in ("first", "second", "distance", "across")}
    assert every_key(Results) - seen == rare


def test_the_figure_in_contributing_can_be_drawn(run: Callable[..., Any]) -> None:
    text = (DOCS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = vars(figures).copy()
    exec(example, names)
    results, folder = run("runner=local", "train.epochs=1")
    captioned = {"time": ("", lambda: names["training_time"](results))}
    (drawn,) = drawing.write(folder / "more", captioned)
    assert "seconds" in names["training_time"](results).axes[0].get_xlabel()
    assert drawn.svg.count("<path") > len(results["models"])


def test_what_is_not_described_is_noticed(run: Callable[..., Any]) -> None:
    _, folder = run("mode=centralized", "runner=local", "train.epochs=1")
    file = folder / "results.json"
    whole = file.read_text()
    for spoil in (
        lambda r: r.update(news=1),
        lambda r: r.pop("seed"),
        lambda r: r["models"]["centralized"].update(accuracy="high"),
        lambda r: r["models"]["centralized"]["per_class"]["cat"].pop("f1"),
    ):
        results = json.loads(whole)
        spoil(results)
        file.write_text(json.dumps(results))
        with pytest.raises(typeguard.TypeCheckError):
            check_results(folder)
