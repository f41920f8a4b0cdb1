"""Every command of the tutorial does what it says, in the order of the page."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from command_line import invoke

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "my-own-checkpoint.md").read_text()
FILES = re.findall(r"`([\w-]+\.py)`\n\n```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
OF_LIBRARIES = [line for line in COMMANDS if "--model" in line]  # tests/test_source.py asks for the like of these
OWN = [line for line in COMMANDS if line not in OF_LIBRARIES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the page's files, in which its commands run one after the other."""
    place = tmp_path_factory.mktemp("own") / "work"
    place.mkdir()
    for name, text in FILES:
        (place / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.syspath_prepend(str(place))
        yield place
    for name, _ in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def words(line):
    """The words of a command, patterns without quotes replaced by the files they match, as a shell does."""
    found = []
    for word in shlex.split(line, posix=False):
        bare = word.strip("\"'")
        found += sorted(map(str, Path().glob(word))) if "*" in word and word == bare else [bare]
    return found


def test_the_page_has_files_and_commands():
    assert [name for name, _ in FILES] == ["net.py", "digits.py"]
    assert {words(line)[1] for line in OWN if line.startswith("sharpness ")} == {
        "doctor", "analyze", "trajectory", "compare", "landscape", "report",
    }  # fmt: skip
    assert len(OF_LIBRARIES) == 3


def test_every_command_runs(folder, capsys):
    for line in OWN:
        program, *arguments = words(line)
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
            continue
        result = invoke(*arguments)
        assert result.code == 0, f"{line}\n{result}"
        assert result.stdout.strip()
    assert (folder / "between" / "report.html").exists()


def test_the_lines_in_python_give_what_they_show(folder):
    import doctest

    parsed = doctest.DocTestParser().get_doctest(PAGE, {}, "tutorial", None, 0)
    assert parsed.examples
    assert doctest.DocTestRunner(verbose=False).run(parsed).failed == 0
