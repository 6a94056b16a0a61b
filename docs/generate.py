"""Makes results.md and configuration.md from the code: ``python docs/generate.py``."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

from omegaconf import OmegaConf

from fedcats import results
from fedcats.config.compose import conf_dir
from fedcats.config.schema import GROUPS, Config

GENERATED = "<!-- Made by `python docs/generate.py`: change the code that it is made from. -->\n"


def results_page() -> str:
    """What ``results.json`` holds: a table for each type, those that it leads to after it."""
    pages, waiting = [], [results.Results]
    for kind in waiting:
        rows = []
        for key, hint in get_type_hints(kind, include_extras=True).items():
            optional = get_origin(hint) is NotRequired or not kind.__total__
            annotated = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
            value, meaning, *when = get_args(annotated)
            waiting += [one for one in typed_dicts(value) if one not in waiting]
            there = when[0] if when else "if known" if optional else "always"
            rows.append((f"`{key}`", type_name(value), meaning, there))
        text = " ".join((kind.__doc__ or "").split())
        pages += [f"## {kind.__name__}", text, table(("key", "type", "meaning", "there"), rows)]
    head = [
        "# results.json",
        GENERATED,
        "A run writes it last and whole: where it is, the run has ended well. JSON in UTF-8. "
        + " ".join((results.__doc__ or "").split("\n\n")[-1].split())
        + " In Python the types are those of `fedcats.results`.",
    ]
    return page(head + pages)


def typed_dicts(hint: Any) -> Iterator[Any]:
    """All TypedDicts in a type."""
    if is_typeddict(hint):
        yield hint
    for part in get_args(hint):
        yield from typed_dicts(part)


def type_name(hint: Any) -> str:
    """A type in JSON's words, a TypedDict as a link to its table."""
    if is_typeddict(hint):
        return f"[{hint.__name__}](#{hint.__name__.lower()})"
    names = {str: "string", int: "integer", float: "number", bool: "boolean", NoneType: "null"}
    if hint in names:
        return names[hint]
    if isinstance(hint, UnionType):
        return " or ".join(map(type_name, get_args(hint)))
    *_, inner = get_args(hint) or (Any,)
    of = "" if inner is Any else f" of {type_name(inner)}"
    return f"{'array' if get_origin(hint) is list else 'object'}{of}"


def configuration_page() -> str:
    """Every key of ``conf/``: default and comment from the YAML files, limits from the schema."""
    head = [
        "# Configuration",
        GENERATED,
        "`key=value` on the command line sets a key, `group=option` takes another file of a "
        "group; what is not allowed is refused before anything starts. `fedcats --cfg job` shows "
        "what comes out. `hydra.run.dir` is the run folder, by default `outputs/<date>/<time>`; "
        "used again, fedcats' own files of the earlier run are replaced, and nothing else.",
    ]
    limits = dict(allowed(Config, ""))
    pages = ["## The run", *describe(conf_dir() / "config.yaml", "", limits)]
    for group in sorted(path for path in conf_dir().iterdir() if path.is_dir()):
        if group.name in ("hydra", "paper"):
            continue
        pages.append(f"## {group.name}")
        for file in sorted(group.glob("*.yaml")):
            at = "" if group.name in ("experiment", "search") else f"{group.name}."
            name = OmegaConf.load(file).get("name")
            kind = GROUPS.get(group.name, {}).get(str(name))
            known = {**limits, **(dict(allowed(kind, at)) if kind else {})}
            pages += [f"### {group.name}={file.stem}", *describe(file, at, known)]
    return page(head + pages)


def allowed(schema: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Every key of a dataclass, and of those in it, with what is allowed."""
    for item in fields(schema):
        if is_dataclass(item.type):
            yield from allowed(item.type, f"{prefix}{item.name}.")
        elif "allowed" in item.metadata:
            yield prefix + item.name, item.metadata["allowed"]


def describe(file: Path, prefix: str, limits: dict[str, str]) -> Iterator[str]:
    """What the head of a YAML file says, and a table of its keys."""
    head: list[str] = []
    rows: list[list[str]] = []
    outer = skipped = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r"( *)([\w.]+):(?: +([^#]*?))?(?: +# ?(.*))?", line)
        if found is None or (skipped and line.startswith(" ")):
            comment = line.strip().removeprefix("#").strip()
            if line.startswith("#") and not rows and not comment.startswith("@package"):
                head.append(comment)
            elif line.startswith(" ") and line.strip().startswith("#") and not skipped:
                rows[-1][-1] += " " + comment
            continue
        indent, key, value, comment = (part or "" for part in found.groups())
        skipped = key if not indent and key in ("defaults", "hydra") else ""
        outer = outer if indent else "" if value else f"{key}."
        if not skipped:
            key = f"{prefix}{outer if indent else ''}{key}"
            rows.append([f"`{key}`", f"`{value}`" if value else "", limits.get(key, ""), comment])
    yield " ".join(head)
    yield taken(OmegaConf.load(file).get("defaults", []), file)
    if rows:
        yield table(("key", "default", "allowed", "meaning"), rows)


def taken(defaults: Any, file: Path) -> str:
    """What an option's defaults list says."""
    like = [one for one in defaults if isinstance(one, str) and one != "_self_"]
    options = [
        f"`{str(group).removeprefix('override ').lstrip('/')}={option}`"
        for one in defaults
        if not isinstance(one, str)
        for group, option in one.items()
        if "hydra" not in str(group)
    ]
    if options:
        return f"It takes {', '.join(options)}."
    return f"Like `{file.parent.name}={like[0]}`, but:" if like else ""


def table(header: tuple[str, ...], rows: Any) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in lines)


def page(parts: list[str]) -> str:
    """A page of paragraphs."""
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


PAGES = {"results.md": results_page, "configuration.md": configuration_page}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (Path(__file__).parent / name).write_text(make(), encoding="utf-8")
