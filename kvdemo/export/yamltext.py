"""Values as YAML text that every reader understands alike, be it one of YAML 1.1 or of 1.2."""

from __future__ import annotations

import re
from typing import Any

import yaml

_AMBIGUOUS = re.compile(r"[-+]?\.?[0-9].*|(?i:y|n|yes|no|on|off|true|false|null|~)")
"""Text that some reader takes for a number, a time or a truth value unless it is quoted."""


class AnchoredMapping(dict[str, Any]):
    """A mapping that stands in several places: written out once, with an anchor."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return not isinstance(data, AnchoredMapping)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if _AMBIGUOUS.fullmatch(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(AnchoredMapping, yaml.SafeDumper.represent_dict)
_Dumper.add_representer(str, _text)


def dump(document: Any) -> str:
    """In block style and in the order given; long text is never folded."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)


def comment(text: str) -> str:
    """The lines of a text as comment lines."""
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())
