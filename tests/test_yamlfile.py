"""YAML with positions, and variables in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvdemo.config.findings import LARGEST, Source, read
from kvdemo.config.variables import Mistake, Variables, dotenv
from kvdemo.config.yamlfile import Document, parse
from kvdemo.errors import ProfileError


def document(text: str, **variables: str) -> Document:
    """This text as a document; everything under ``env`` stays text."""
    return parse(Source("p.yaml", text), variables, lambda keys: keys[0] == "env")


def messages(found: Document) -> list[str]:
    """The first line of each finding, each once, in order."""
    return [str(finding).splitlines()[0] for finding in sorted(set(found.findings))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8000", 8000),
        ("0x10", 16),
        ("-3", -3),
        ("010", "010"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        (".inf", ".inf"),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("", None),
        ("'8000'", "8000"),
        ('"a\\tb"', "a\tb"),
        ("|\n  two\n  lines", "two\nlines\n"),
        ("!!str 8000", "8000"),
        ("9" * 5000, "9" * 5000),
        ("${N:-8000}", 8000),
        ('"${N:-8000}"', "8000"),
        ("${EMPTY-x}", None),
        ("${FLAG}", True),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    """A scalar is what YAML 1.2 says (and yes/no); a plain one is looked at again once its variables are in."""
    found = document(f"a: {text}\n", EMPTY="", FLAG="true")
    assert not found.findings
    assert found.value == {"a": value}
    assert type(found.value["a"]) is type(value)


def test_text_is_kept_where_asked() -> None:
    """Values of environment variables stay as written."""
    assert document("env: {A: 1.10, B: yes, C: 0x10, D: }").value["env"] == {
        "A": "1.10",
        "B": "yes",
        "C": "0x10",
        "D": None,
    }


def test_merge_keys() -> None:
    """Own keys win over merged ones, earlier merges over later ones; x- keys of the top are no values."""
    text = "x-a: &a {p: 1, q: 1}\nx-b: &b {q: 2, r: 2}\none: {<<: [*a, *b], p: 0}\ntwo: {<<: *b}\n"
    assert document(text).value == {"one": {"p": 0, "q": 1, "r": 2}, "two": {"q": 2, "r": 2}}


def test_positions() -> None:
    """Line and column point at keys and values, through comments, flow style and anchors."""
    found = document("# c\na:\n  - b: {c: &x 1}\n  - *x\n")
    assert found.value == {"a": [{"b": {"c": 1}}, 1]}
    found.find(("a", 0, "b", "c"), "value")
    found.find(("a", 0, "b", "c"), "key", at_key=True)
    found.find(("a", 0, "b", "nothing"), "around")
    assert messages(found) == [
        "p.yaml:3:8: a[0].b.nothing: around",
        "p.yaml:3:9: a[0].b.c: key",
        "p.yaml:3:12: a[0].b.c: value",
    ]


def test_an_anchor_tells_its_mistake_once() -> None:
    """A mistake in an anchor that is used twice is one finding."""
    assert messages(document("x-a: &a {p: $NO}\none: {<<: *a}\ntwo: {<<: *a}\n")) == [
        "p.yaml:1:13: one.p: variable NO is not set; set it, or give it a default: ${NO:-...}"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1: duplicate key 'a' (first on line 1)"),
        ("a: {b: {c: 1, c: 2}}\n", "1:15: a.b: duplicate key 'c' (first on line 1)"),
        ("a: {{x}}\n", "1:5: a: a key must be plain text (is a '{...}' meant as text? then quote it)"),
        ("<<: 3\n", "1:5: '<<' merges mappings: expected an alias such as *base"),
        ("a: !thing x\n", "1:4: a: the tag '!thing' is not supported"),
        ("a: !!set {x}\n", "1:4: a: the tag 'set' is not supported here"),
        ("a: !!int x\n", "1:4: a: this is no int"),
        ('a: "x\\0"\n', "1:4: a: the control character U+0000 cannot be part of a value"),
        ('a: "\\ud800"\n', "1:4: a: half of a surrogate pair cannot be part of a value"),
        ("a: &a [*a]\n", "1:4: nested too deeply (an alias inside itself?)"),
        ("a: [1, $NO]\n", "1:8: a[1]: variable NO is not set; set it, or give it a default: ${NO:-...}"),
        ("a: |\n  one\n  ${NO}\n", "3:3: a: variable NO is not set; set it, or give it a default: ${NO:-...}"),
        ("a: ${NO:?say where}\n", "1:4: a: variable NO is not set: say where"),
        ("a: cost 5$ each\n", "1:10: a: write '$$' for a dollar, ${NAME} or ${NAME:-default} for a variable"),
        ("a: ${NO:-${X}\n", "1:4: a: this '${' is never closed"),
        (
            "secrets: [KEY]\na: x ${KEY:-}\n",
            "2:6: a: KEY is under 'secrets' and must not become part of a value; engines get it from your environment",
        ),
    ],
)
def test_findings(text: str, expected: str) -> None:
    """Each mistake is found where it is, and its value left out."""
    found = document(text, KEY="hidden")
    assert messages(found) == [f"p.yaml:{expected}"]
    assert "hidden" not in str(found.value) + str(found.findings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", "1:5: not YAML: a ':' cannot be here: is the indentation right, or does a text need quotes?"),
        ("a:\n\tb: 1", "2:1: not YAML: a tab; YAML is indented with spaces"),
        ("x: 1\na: 'x\n", "2:4: not YAML: this quote is never closed"),
        ("a: [1,\nb: 3", "1:4: not YAML: a ',' or the closing ']' is missing, or a text needs quotes"),
        ("a: {b: 1\nc: 2\n", "1:4: not YAML: a ',' or the closing '}' is missing, or a text needs quotes"),
        ("a: [Who?, Why?]", "1:8: not YAML: a ',' or the closing ']' is missing, or a text needs quotes"),
        ("a: *x", "1:4: not YAML: no anchor of this name stands above (a text that begins with '*' needs quotes)"),
        ("a:\n    b: 1\n  c: 2", "3:3: not YAML: the indentation does not fit the lines above"),
        ("a: `x", "1:4: not YAML: this character cannot start a value: put the text in quotes"),
        ("a: 1\n---\nb: 2", "2:1: not YAML: a second document ('---') starts here; a profile is one document"),
        ('a: "\\q"', "1:6: not YAML: no such escape; in single quotes a backslash is just a backslash"),
        ('a: "\\UFFFFFFFF"', "1:5: not YAML: this escape names no character"),
        ("a: \x1b[0m", "1:4: not YAML: the character U+001B is not allowed"),
        ("[" * 5000, "1:1: nested too deeply"),
        ("- 1\n", "1:1: expected 'key: value' lines (a mapping); a profile needs at least 'engines'"),
        ("# only this\n", "1:1: the file is empty (or all comments); a profile needs at least 'engines'"),
    ],
)
def test_not_yaml(text: str, expected: str) -> None:
    """What is no YAML mapping says so at its place, in plain words and on one line."""
    with pytest.raises(ProfileError) as caught:
        document(text)
    assert str(caught.value).splitlines()[0] == f"p.yaml:{expected}"
    assert "\x1b" not in str(caught.value)


def test_aliases_cannot_explode() -> None:
    """A small file that expands to billions of values is refused, quickly."""
    lines = ["x-0: &x0 [1]"] + [f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert messages(document("\n".join([*lines, "a: *x11"])))[0].endswith("too many values")


def test_merges_cannot_explode() -> None:
    """A base that is merged again and again is merged once; one inside itself ends."""
    lines = ["x-0: &x0 {a: 1}"] + [f"x-{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}]}}" for n in range(1, 30)]
    assert document("\n".join([*lines, "b: *x29"])).value == {"b": {"a": 1}}
    assert document("b: &b\n  <<: *b\n  c: 1\n").value == {"b": {"c": 1}}


def test_excerpt() -> None:
    """The caret stands under the column, also behind tabs and in a long line, and nothing reaches the terminal."""
    assert (
        str(Source("f", "\ta: \u202eb").finding(4, "m"))
        == "f:1:5: m\n    1 | \ta: \N{REPLACEMENT CHARACTER}b\n      | \t   ^"
    )
    line, caret = str(Source("f", "x" * 200 + "y" + "z" * 200).finding(200, "m")).splitlines()[1:]
    assert line[caret.index("^")] == "y"
    assert len(line) < 120
    assert re.fullmatch(r"    1 \| …x+yz+…", line)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A ${A} $$A ${A}b", "1 1 $A 1b"),
        ("${NO:-d} ${NO-d} ${E:-d} ${E-d}", "d d d "),
        ("${A:+x}${E:+x}${E+x}${NO+x}", "xx"),
        ("${A:?no}${A?no}${E?no}", "11"),
        ("${NO:-${E:-${A}}}/${NO:-$$}", "1/$"),
        ("${NO:-{a}}", "{a}"),
        ("${A:-$NO}", "1"),
        ("~/x ${HOME_OF}", "~/x $A"),
    ],
)
def test_variables(text: str, value: str) -> None:
    """All forms of docker compose, nested too; what a variable holds is not expanded again."""
    assert Variables({"A": "1", "E": "", "HOME_OF": "$A"}).expand(text) == value


def test_variables_end() -> None:
    """Any nesting ends in a mistake, not in a stack."""
    with pytest.raises(Mistake, match="too deeply"):
        Variables({}).expand("${A:-" * 500 + "}" * 500)


def test_dotenv(tmp_path: Path) -> None:
    """Lines as a shell reads them; a wrong one is told with its number; a directory of that name is no such file."""
    file = tmp_path / ".env"
    assert dotenv(file) == ({}, [])
    file.write_text("# c\nA=1\nexport B='two words' # c\n\nC=\nD=x y\nE='open\n")
    variables, findings = dotenv(file)
    assert {**variables, "D": ""} == {"A": "1", "B": "two words", "C": "", "D": ""}
    assert [str(finding).splitlines()[0] for finding in findings] == [
        f"{file}:6:1: expected NAME=value (a value with spaces needs quotes)",
        f"{file}:7:1: this quote is never closed",
    ]
    file.unlink()
    file.mkdir()
    assert dotenv(file) == ({}, [])


def test_unreadable_files(tmp_path: Path) -> None:
    """A file that cannot be a profile is refused with its reason, a misspelt name with the right one."""
    (tmp_path / "demo4.yaml").write_text("a: 1\n")
    for name, data, reason in [
        ("binary", b"\x7fELF\0", "is a binary file, not UTF-8 text"),
        ("latin", "a: 1\nb: é".encode("latin-1"), "byte 0xe9 is not UTF-8 text"),
        ("huge", b" " * (LARGEST + 1), "is larger than 128 KiB; this is no profile"),
        ("demo.yaml", None, "no such file"),
        (".", None, "is a directory, not a file"),
    ]:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ProfileError) as caught:
            read(tmp_path / name)
        assert str(caught.value).splitlines()[0].endswith(reason)
        assert caught.value.hint == (f"did you mean {tmp_path / 'demo4.yaml'}?" if name == "demo.yaml" else "")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read(tmp_path / "bom.yaml").text == "a: 1\r\n"
