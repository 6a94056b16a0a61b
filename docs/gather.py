"""Gathers the site of README.md and docs/ for ``make docs``, which builds build/site/index.html.

The pages are written for a reader of the repository: links between them become the site's, and what
a link says of a file that is no page stays as words.
"""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build/site-source"
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def pages() -> dict[Path, str]:
    """Every page and picture, and its name in the site."""
    above = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE")
    files = [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.png"), *(ROOT / name for name in above)]
    return {ROOT / "README.md": "index.md"} | {path: path.name for path in files}


def rewritten(page: Path, text: str, names: dict[Path, str]) -> str:
    """The text of a page with links that lead somewhere in the site."""

    def link(match: re.Match[str]) -> str:
        picture, words, target, anchor = match.groups()
        name = names.get((page.parent / target).resolve())
        return f"{picture}[{words}]({name}{anchor or ''})" if name else words

    return _LINK.sub(link, text)


def gather(folder: Path) -> None:
    """Write the site's sources into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = pages()
    for path, name in names.items():
        if path.suffix == ".md":
            text = rewritten(path, path.read_text(encoding="utf-8"), names)
            (folder / name).write_text(text, encoding="utf-8")
        else:
            shutil.copy(path, folder / name)


if __name__ == "__main__":
    gather(SOURCE)
