"""docs/security.md names the tests that show what it says: they are there."""

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_the_tests_that_security_md_names_are_there() -> None:
    text = (TESTS.parent / "docs/security.md").read_text(encoding="utf-8")
    defined = {
        name: path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", text)
    assert len(named) > 20
    assert [name for _, name in named if name not in defined] == []
    assert [(f, name) for f, name in named if f and defined[name] != f] == []
