"""A mapping of the profile, checked key by key; the docstring under a key is what users read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from kvdemo.config import values


class Part(BaseModel):
    """A mapping of the file; a key with nothing behind it is an empty one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        return value if isinstance(value, cls) else values.mapping(value)
