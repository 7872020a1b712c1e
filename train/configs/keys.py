"""What the keys of a config mean: read off the docstrings and comments that say so already."""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from train.configs import common
from train.experiment.experiment import settings_classes
from train.step.state import AlignmentTerm


def describe(config: ConfigDict) -> str:
    """Every key of a config as the flag that sets it, with its value and what it means.

    Example:
        >>> from train.configs import digits
        >>> lines = describe(digits.get_config()).splitlines()
        >>> place = lines.index("--config.optimizer.decay_alignment=False")
        >>> lines[place + 1].strip()
        'whether the alignment networks are decayed as well.'
    """
    classes = settings_classes(config)
    sections = ("data", "model", "task", "optimizer", "alignment")
    meanings = {section: attributes(classes[section]) for section in sections}
    meanings["alignment"] |= attributes(AlignmentTerm)
    meanings |= {kind: comments(common, f"config.{kind}") for kind in ("train", "eval")}
    lines = [f"--config.{x}={config[x]!r}" for x in config if x not in meanings]
    for section, known in meanings.items():
        for key, value in config[section].items():
            lines.append(f"--config.{section}.{key}={'' if value is None else repr(value)}")
            if key in known:
                lines.append(textwrap.indent(textwrap.fill(known[key], 84), " " * 4))
    return "\n".join(lines)


def attributes(documented: Any) -> dict[str, str]:
    """What a class's docstring says of each of its attributes or arguments."""
    found: dict[str, str] = {}
    for kind in (documented, *getattr(documented, "__mro__", ())):
        text = inspect.cleandoc(kind.__doc__ or "")
        for section in re.findall(r"^(?:Attributes|Args):\n((?: .*\n?|\n)+)", text, flags=re.M):
            for names, meaning in re.findall(
                r"^(\w+(?:, \w+)*): (.+(?:\n +.+)*)", textwrap.dedent(section), flags=re.M
            ):
                for name in names.split(", "):
                    found.setdefault(name, " ".join(meaning.split()))
    return found


def comments(module: ModuleType, prefix: str) -> dict[str, str]:
    """The comment above, in or behind each assignment to `prefix.NAME` in a module's source."""
    source = inspect.getsource(module)
    said = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign):
            continue
        owner, _, name = ast.unparse(node.targets[0]).rpartition(".")
        first = node.lineno
        while said.get(first - 1, ("", False))[1]:
            first -= 1
        words = [said[line][0] for line in range(first, (node.end_lineno or first) + 1)
                 if line in said]  # fmt: skip
        if owner == prefix and words:
            found[name] = " ".join(words)
    return found
