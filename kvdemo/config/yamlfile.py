"""A YAML file as values, with the line and column of every key and value, so that a finding can point at its cause.

Values are those of YAML 1.2 plus the words yes, no, on and off; no dates, no sexagesimal numbers, no custom tags.
Every scalar value (never a key) is interpolated as docker compose does it, except that an unset variable without a
default is a finding. Nothing here knows what the keys mean, but for two conventions: ``x-`` keys at the top are
ignored (anchors live there), and the variables named under ``secrets`` are never interpolated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from kvdemo.config.findings import Finding, Keys, Source, failure
from kvdemo.config.variables import Mistake, Variables

_MOST_VALUES = 20_000
_DEEPEST = 40
_TAG = "tag:yaml.org,2002:"
_BROKEN = object()


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a terminal would obey, or no command line can hold; tabs and line feeds are text."""

_PLAIN = "plain"
_KINDS = {
    _TAG + "bool": re.compile(r"(?i:true|false|yes|no|on|off)"),
    _TAG + "int": re.compile(r"[-+]?[1-9][0-9]{0,30}|[-+]?0|0x[0-9a-fA-F]{1,30}"),
    _TAG + "float": re.compile(
        r"[-+]?([0-9]{1,30}\.[0-9]{0,30}|\.[0-9]{1,30})([eE][-+]?[0-9]{1,3})?|[-+]?[0-9]{1,30}[eE][-+]?[0-9]{1,3}"
    ),
    _TAG + "null": re.compile(r"~|null|Null|NULL|"),
}


def _kind(text: str) -> str:
    """The tag of a plain scalar."""
    return next((tag for tag, pattern in _KINDS.items() if pattern.fullmatch(text)), _TAG + "str")


class _Loader(yaml.SafeLoader):
    """Leaves plain scalars undecided until their variables are in."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _PLAIN
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call] # PyYAML's stubs have none


_SYNTAX = {
    "mapping values are not allowed": "a ':' cannot be here: is the indentation right, or does a text need quotes?",
    "cannot start any token": "this character cannot start a value: put the text in quotes",
    "could not find expected ':'": "expected 'key: value'",
    "expected <block end>": "the indentation does not fit the lines above",
    "expected the node content": "a value is missing here",
    "found unexpected end of stream": "this quote is never closed",
    "expected ',' or ']'": "a ',' or the closing ']' is missing, or a text needs quotes",
    "expected ',' or '}'": "a ',' or the closing '}' is missing, or a text needs quotes",
    "found undefined alias": "no anchor of this name stands above (a text that begins with '*' needs quotes)",
    "found unknown escape": "no such escape; in single quotes a backslash is just a backslash",
    "expected a single document": "a second document ('---') starts here; a profile is one document",
}
_AT_START = ("found unexpected end of stream", "expected ',' or ']'", "expected ',' or '}'")
"""Problems that are told where the construct begins, unless the parser gave up on the same line."""


def _compose(source: Source) -> yaml.Node | None:
    try:
        loader = _Loader(source.text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        problem = f"{error.context + ': ' if error.context else ''}{error.problem or error}"
        explanations = [(part, words) for part, words in _SYNTAX.items() if part in problem]
        words = explanations[0][1] if explanations else problem
        if "'\\t'" in problem:
            words = "a tab; YAML is indented with spaces"
        mark = error.problem_mark or error.context_mark
        start = error.context_mark
        if explanations and explanations[0][0] in _AT_START and start and mark and start.line != mark.line:
            mark = start
        raise failure([source.finding(mark.index if mark else 0, f"not YAML: {words}")]) from None
    except yaml.reader.ReaderError as error:
        message = f"not YAML: the character U+{error.character:04X} is not allowed"
        raise failure([source.finding(error.position, message)]) from None
    except RecursionError:
        raise failure([source.finding(0, "nested too deeply")]) from None
    except (ValueError, OverflowError):
        index = max(0, source.text.find("\\U"))
        raise failure([source.finding(index, "not YAML: this escape names no character")]) from None


@dataclass
class Document:
    """Values of a file (plain mappings, lists, scalars), where each key and value stands, and what is wrong so far.

    ``broken`` are the ways to values that are left out because they have a finding already.
    """

    source: Source
    value: Any = None
    keys: dict[Keys, int] = field(default_factory=dict)
    values: dict[Keys, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    broken: set[Keys] = field(default_factory=set)

    def find(self, keys: Keys, message: str, *, at_key: bool = False, about: Keys | None = None) -> None:
        """Add a finding at this value (or its key, or the nearest one around it), told as one about ``about``."""
        nearest = keys
        while nearest and nearest not in self.values:
            nearest = nearest[:-1]
        index = (self.keys if at_key else self.values).get(nearest, self.values.get(nearest, 0))
        self.findings.append(self.source.finding(index, message, keys if about is None else about))


def parse(source: Source, variables: Mapping[str, str], as_text: Callable[[Keys], bool]) -> Document:
    """Read one YAML document whose top is a mapping.

    Scalars for which ``as_text`` holds stay text as written (``1.10``, ``yes``). Raises ProfileError if the text is
    not YAML or holds nothing; every other mistake is in ``Document.findings``.
    """
    root = _compose(source)
    if root is None:
        raise failure([source.finding(0, "the file is empty (or all comments); a profile needs at least 'engines'")])
    if not isinstance(root, yaml.MappingNode):
        message = "expected 'key: value' lines (a mapping); a profile needs at least 'engines'"
        raise failure([source.finding(root.start_mark.index, message)])
    document = Document(source)
    value = _Builder(document, Variables(variables, frozenset(_secrets(root, set()))), as_text).build(root, ())
    document.value = {} if value is _BROKEN else value
    return document


def _secrets(top: yaml.Node, scalars: set[int]) -> Iterator[str]:
    """The scalars under ``secrets``, as written, of the top and of what is merged into it."""
    for key, value in top.value if isinstance(top, yaml.MappingNode) and len(scalars) < _DEEPEST else ():
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if key.value == "secrets":
            yield from (item.value for item in items if isinstance(item, yaml.ScalarNode))
        elif key.value == "<<":
            for item in [item for item in items if id(item) not in scalars]:
                scalars.add(id(item))
                yield from _secrets(item, scalars)


class _Builder:
    """Nodes to values. Aliases are expanded, hence the limits on depth and number of values."""

    def __init__(self, document: Document, variables: Variables, as_text: Callable[[Keys], bool]) -> None:
        self.document = document
        self.variables = variables
        self.as_text = as_text
        self.count = 0
        self.constructor = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node, keys: Keys) -> Any:
        """The value of this node, or _BROKEN after a finding."""
        self.document.values[keys] = node.start_mark.index
        self.count += 1
        if len(keys) > _DEEPEST or self.count > _MOST_VALUES:
            much = "nested too deeply (an alias inside itself?)" if len(keys) > _DEEPEST else "too many values"
            if self.count <= _MOST_VALUES + 1:
                self._find(node, (), much)
            self.count = _MOST_VALUES + 1
            return _BROKEN
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.build(item, (*keys, index)) for index, item in enumerate(node.value)]
            return _BROKEN if _BROKEN in items else items
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, keys)
        return self._find(node, keys, f"the tag '{node.tag.removeprefix(_TAG)}' is not supported here")

    def _find(self, node: yaml.Node, keys: Keys, message: str, piece: str = "") -> Any:
        text = self.document.source.text
        offset = text[node.start_mark.index : node.end_mark.index].find(piece)
        index = node.start_mark.index + max(0, offset)
        self.document.findings.append(self.document.source.finding(index, message, keys))
        self.document.broken.add(keys)
        return _BROKEN

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> Any:
        result: dict[str, Any] = {}
        for key, child in self._pairs(node, keys, {id(node)}):
            if key.value in result or (not keys and key.value.startswith("x-")):
                continue
            path = (*keys, key.value)
            self.document.keys[path] = key.start_mark.index
            result[key.value] = self.build(child, path)
        return {key: value for key, value in result.items() if value is not _BROKEN}

    def _pairs(self, node: yaml.MappingNode, keys: Keys, used: set[int]) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
        """Keys and values, own ones first, then merged ones."""
        merged: list[yaml.Node] = []
        scalars: dict[str, yaml.ScalarNode] = {}
        for key, child in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable() or not key.value:
                self._find(key, keys, "a key must be plain text (is a '{...}' meant as text? then quote it)")
            elif key.value == "<<" and key.style is None:
                merged += child.value if isinstance(child, yaml.SequenceNode) else [child]
            elif key.value in scalars:
                first = scalars[key.value].start_mark.line + 1
                self._find(key, keys, f"duplicate key '{key.value}' (first on line {first})")
            else:
                scalars[key.value] = key
                yield key, child
        for base in merged:
            if not isinstance(base, yaml.MappingNode) or len(used) > _DEEPEST:
                self._find(base, keys, "'<<' merges mappings: expected an alias such as *base")
            elif id(base) not in used:
                # Once is enough, and keeps merges of merges from growing without end.
                used.add(id(base))
                yield from self._pairs(base, keys, used)

    def _scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        try:
            text = node.value if keys[:1] == ("secrets",) else self.variables.expand(node.value)
            if control := _CONTROL.search(text):
                raise Mistake(f"the control character U+{ord(control[0]):04X} cannot be part of a value")
            text.encode()
            tag = _kind(text) if node.tag == _PLAIN else node.tag
            if tag == _TAG + "str" or (self.as_text(keys) and tag != _TAG + "null"):
                return text
            if tag not in {_TAG + kind for kind in ("bool", "int", "float", "null")}:
                raise Mistake(f"the tag '{tag.removeprefix(_TAG)}' is not supported")
            return self.constructor.construct_object(yaml.ScalarNode(tag, text))
        except Mistake as mistake:
            return self._find(node, keys, str(mistake), mistake.piece)
        except UnicodeEncodeError:
            return self._find(node, keys, "half of a surrogate pair cannot be part of a value")
        except (ValueError, KeyError, IndexError, yaml.YAMLError):
            return self._find(node, keys, f"this is no {node.tag.removeprefix(_TAG)}")
