"""Putting a configuration together: a file, its profile, the environment.

Law: the environment wins over the profile, the profile over the file, the file over the defaults; everything that is
wrong anywhere is raised at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from flowlet.config.catalog import FLAT, kinds_by_name
from flowlet.config.environment import FILE, PROFILE, read_environment
from flowlet.config.files import Source, find_profile_file, find_source, open_source, profile_files
from flowlet.config.findings import Finding, Findings
from flowlet.config.values import Config, refuse, sections, shown
from flowlet.core.faults import nearest

C = TypeVar("C", bound=Config)

_PROFILES = "profiles"


def load(
    cls: type[C], path: str | Path | None, *, profile: str | None = None, environ: Mapping[str, str] | None = None
) -> C:
    """See `Config.load`."""
    environ = os.environ if environ is None else environ
    findings = Findings()
    source = _source(path, environ)
    if source is not None:
        findings.cover(_read(source, source.section, ()))
    if profile is None and (wanted := environ.get(PROFILE, "").strip()):
        findings.cover(_read_profile(source, wanted, PROFILE))
    elif profile is not None:
        findings.cover(_read_profile(source, profile, "profile="))
    findings.cover(read_environment(environ))
    refuse(findings.problems, "configuration")
    return _build(cls, findings.found)


def _build(cls: type[C], found: Mapping[str, Finding]) -> C:
    values = {name: finding.value for name, finding in found.items()}
    parts: dict[str, Any] = {}
    for section, part in sections(cls).items():
        prefix = section + "."
        parts[section] = part(**{n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)})
    config = cls(**parts, **{name: value for name, value in values.items() if "." not in name})
    return msgspec.structs.replace(config, _origins={name: finding.origin for name, finding in found.items()})


def _source(path: str | Path | None, environ: Mapping[str, str]) -> Source | None:
    if path is not None:
        return open_source(Path(path), "Config.load")
    named = environ.get(FILE, "").strip()
    return open_source(Path(named), FILE) if named else find_source()


def _read_profile(source: Source | None, profile: str, asked_by: str) -> Findings:
    """Return what a profile says, from the section of that name and from the file of that name."""
    findings = Findings()
    section = None if source is None else source.section
    profiles = section.get(_PROFILES) if isinstance(section, dict) else None
    known = set(profiles) if isinstance(profiles, dict) else set()
    beside = None
    if source is not None:
        known |= set(profile_files(source))
        if "/" not in profile and "\\" not in profile:
            beside = find_profile_file(source, profile)
    if profile not in known:
        there = f"there are {', '.join(sorted(map(str, known)))}{nearest(profile, map(str, known))}"
        findings.problems.append(
            f"{asked_by}: there is no profile {profile!r}; " + (there if known else "no file here has any profile")
        )
        return findings
    if source is not None and isinstance(profiles, dict) and profile in profiles:
        findings.cover(_read(source, profiles[profile], (_PROFILES, profile)))
    if beside is not None:
        findings.cover(_read(beside, beside.section, ()))
    return findings


def _read(source: Source, section: Any, keys: tuple[str, ...]) -> Findings:
    """Return what a section says.

    Args:
        keys: where it is within the file's section; profiles hold no further ones.
    """
    findings = Findings()
    for twice, line in source.document.twice:
        if twice[: len(source.keys)] == source.keys and (not keys or twice[len(source.keys) :][:2] == keys):
            findings.problems.append(f"{source.label}:{line}: {twice[-1]} stands here a second time; keep one")
    if section is None:  # an empty section of a YAML file
        return findings
    if not isinstance(section, dict):
        findings.problems.append(f"{source.place(*keys)}: takes names and values, not {shown(section)}")
        return findings
    for key, value in section.items():
        _read_key(source, (*keys, str(key)), value, findings, is_outer=not keys)
    return findings


def _read_key(source: Source, keys: tuple[str, ...], value: Any, findings: Findings, *, is_outer: bool) -> None:
    key, place, known = keys[-1], source.place(*keys), kinds_by_name()
    inner = sections(Config)
    if key == _PROFILES and is_outer:
        if not isinstance(value, dict):
            findings.problems.append(f"{place}: {_PROFILES} takes a section for each profile, not {shown(value)}")
        return
    if key in inner:
        if isinstance(value, dict):
            for name, found in value.items():
                _note(source, (*keys, str(name)), f"{key}.{name}", found, findings)
        elif value is not None:
            findings.problems.append(f"{place}: {key} takes names and values, not {shown(value)}")
        return
    _note(source, keys, key if key in known else f"{FLAT}.{key}", value, findings)


def _note(source: Source, keys: tuple[str, ...], name: str, value: Any, findings: Findings) -> None:
    """Note one value, or that there is no such setting."""
    place = source.place(*keys)
    if name in kinds_by_name():
        findings.add(name, value, place, label=keys[-1])
    else:
        findings.problems.append(f"{place}: there is no setting {keys[-1]!r}{_nearest(keys[-1], name, keys)}")


def _nearest(key: str, name: str, keys: tuple[str, ...]) -> str:
    """Return the name that was perhaps meant, as it would have to be written there."""
    names = list(kinds_by_name())
    if len(keys) > 1 and keys[-2] in sections(Config):
        section = name.partition(".")[0]
        return nearest(key, [n.removeprefix(f"{section}.") for n in names if n.startswith(f"{section}.")])
    flat = [n.removeprefix(f"{FLAT}.") for n in names if "." not in n or n.startswith(f"{FLAT}.")]
    return nearest(key, [*flat, *sections(Config), *([_PROFILES] if len(keys) == 1 else [])])
