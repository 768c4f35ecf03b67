"""`Config.load`: every setting, every place it may stand, every way of getting it wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlet.config import BulkConfig, Config, GraphConfig, Variable, variables
from flowlet.errors import ConfigError, MissingExtra

EXAMPLES: dict[str, tuple[str, Any]] = {
    "enabled": ("no", False),
    "store": ("sqlite:///other.db", "sqlite:///other.db"),
    "name": ("web-1", "web-1"),
    "lease": ("1m30s", 90.0),
    "grace": ("0", 0.0),
    "drain_on_sigterm": ("Off", False),
    "max_payload": ("4096", 4096),
    "bulk.batch_size": ("7", 7),
    "bulk.max_concurrency": ("64", 64),
    "bulk.timeout": ("2.5", 2.5),
    "bulk.retry_attempts": ("1", 1),
    "bulk.retry_delay": ("250ms", 0.25),
    "bulk.enable_progress_tracking": ("false", False),
    "bulk.pipeline_timeout": ("none", None),
    "graph.max_iterations": ("5", 5),
    "graph.node_timeout": ("1d", 86400.0),
    "graph.total_timeout": ("2h", 7200.0),
    "graph.max_parallel_branches": ("3", 3),
}
"""For each setting a text, not that of the default, and what it stands for."""


def value_of(config: Config, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def load(**environ: str) -> Config:
    return Config.load(environ=environ)


def problems(text: str = "", *, file: str = "flowlet.toml", profile: str | None = None, **environ: str) -> list[str]:
    if text:
        Path(file).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        Config.load(environ=environ, profile=profile)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return list(caught.value.problems)


# ---------------------------------------------------------------- every setting
@pytest.mark.parametrize(
    ("setting", "variable"), [(v, name) for v in variables() for name in v.variables], ids=lambda x: str(x)[:40]
)
def test_every_variable_sets_its_field_and_nothing_else(setting: Variable, variable: str) -> None:
    text, value = EXAMPLES[setting.name]
    config = load(**{variable: text})
    assert value_of(config, setting.name) == value != setting.default
    assert type(value_of(config, setting.name)) is type(value)
    assert config.origin(setting.name) == variable
    others = [v.name for v in variables() if v.name != setting.name]
    assert all(value_of(config, name) == value_of(Config(), name) for name in others)


def test_the_table_of_the_readme_has_every_setting(root: Path) -> None:
    rows = [line for line in (root / "README.md").read_text(encoding="utf-8").splitlines() if "| `FLOWLET_" in line]
    assert rows == [row(v) for v in variables()]
    assert {v.name for v in variables()} == set(EXAMPLES)


def row(v: Variable) -> str:
    default = v.default
    shown = (
        f"{default:g}"
        if isinstance(default, float)
        else str(default).lower()
        if default is None or default is True
        else default
    )
    return f"| `{v.name}` | `{v.variables[0]}` | {v.type} | {shown} | {v.meaning} |"


def test_nothing_at_all_is_the_default() -> None:
    assert load() == Config() == Config.load(environ={"PATH": "/bin", "FLOWLET_STORE": "", "FLOWLET_PROFILE": " "})
    assert hash(load()) == hash(Config())
    assert Config() != Config(lease=3)
    assert load().origin("store") is None


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults() -> None:
    Path("flowlet.toml").write_text('lease = 20\nbatch_size = 3\n[graph]\nnode_timeout = "5m"\n', encoding="utf-8")
    config = load(FLOWLET_LEASE="30")
    assert (config.lease, config.bulk.batch_size, config.graph.node_timeout, config.grace) == (30.0, 3, 300.0, 5.0)
    assert config.origin("lease") == "FLOWLET_LEASE"
    assert config.origin("bulk.batch_size") == "flowlet.toml:2"


def test_names_of_tests_are_none_of_ours() -> None:
    assert (
        load(FLOWLET_TEST_REQUIRE="postgres", FLOWLET_CONFORMANCE_DIR="x", FLOWLETS="3", OTHER_FLOWLET_X="1")
        == Config()
    )


# ---------------------------------------------------------------- in Python
def test_values_are_checked_when_they_are_made() -> None:
    assert Config(lease=timedelta(minutes=1)).lease == 60.0
    assert GraphConfig(total_timeout=0, max_parallel_branches=0) == GraphConfig()
    assert BulkConfig(timeout=None).timeout is None
    given: Any = {"lease": 0, "name": "a b", "bulk": 3, "max_payload": 7, "enabled": 1}
    with pytest.raises(ConfigError) as caught:
        Config(**given)
    assert [p.partition(":")[0] for p in caught.value.problems] == ["enabled", "name", "lease", "max_payload", "bulk"]


def test_passwords_are_never_shown() -> None:
    url = "postgresql://ann:se/cr@et@host/db"
    assert "cr@et" not in repr(Config(store=url))
    assert "se/cr" not in repr(Config(store=url))
    assert "cr@et" not in str(problems(f'store = "{url}"\nstor = "{url}"\n[bulk]\nbatch_size = "{url}"'))


@given(st.floats(0.001, 10**7, allow_nan=False), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_durations_are_what_they_say(number: float, unit: tuple[str, float]) -> None:
    text = f"{number:.3f}{unit[0]}"
    found = Config.load(environ={"FLOWLET_GRACE": text}).grace
    assert found == pytest.approx(float(f"{number:.3f}") * unit[1])


@given(st.text(max_size=12).filter(lambda s: "\0" not in s))
def test_any_text_is_a_value_or_a_config_error(text: str) -> None:
    environ = {name: text for v in variables() for name in v.variables[:1] if v.name != "name"}
    found: tuple[str, ...] = ()
    try:
        Config.load(environ=environ)
    except ConfigError as error:
        found = error.problems
    assert all(p.startswith("FLOWLET_") for p in found)


# ---------------------------------------------------------------- wrong things
def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = problems(
        'stor = "x"\nbatch_size = 0\n\n[graph]\nnode_timeot = 3\n[profiles.test]\nlease = "soon"\n',
        FLOWLET_PROFILE="test",
        FLOWLET_STOR="x",
        FLOWLET_ENABLED="perhaps",
    )
    assert found == [
        "flowlet.toml:1: there is no setting 'stor'; did you mean 'store'?",
        "flowlet.toml:2: batch_size takes a whole number of at least 1, not 0",
        "flowlet.toml:5: there is no setting 'node_timeot'; did you mean 'node_timeout'?",
        "flowlet.toml:7: lease takes seconds, or a text with units such as '500ms', '10s', '5m', '1h30m' or '2d', "
        "of more than 0, not 'soon'",
        "FLOWLET_STOR: there is no such setting; did you mean 'FLOWLET_STORE'?",
        "FLOWLET_ENABLED: takes true or false (as a text also yes, no, on, off, 1 and 0), not 'perhaps'",
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e400", "5 minutes", "1h30", "--", "0x10"])
def test_texts_that_are_no_duration(value: str) -> None:
    assert "FLOWLET_LEASE" in problems(FLOWLET_LEASE=value)[0]


def test_both_spellings() -> None:
    assert load(FLOWLET_TIMEOUT="60", FLOWLET_BULK__TIMEOUT="1m").bulk.timeout == 60
    assert problems(FLOWLET_TIMEOUT="60", FLOWLET_BULK__TIMEOUT="2m") == [
        "FLOWLET_TIMEOUT and FLOWLET_BULK__TIMEOUT both set bulk.timeout, to 60.0 and 120.0; keep one"
    ]
    assert problems("batch_size = 3\n[bulk]\nbatch_size = 4\n") == [
        "flowlet.toml:1 and flowlet.toml:3 both set bulk.batch_size, to 3 and 4; keep one"
    ]
    assert problems(FLOWLET_NODE_TIMEOUT="3")[-1].startswith("FLOWLET_NODE_TIMEOUT: there is no such setting")


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("flowlet.toml", 'store = "x\n', r"flowlet\.toml:1: "),
        ("flowlet.toml", "a = 1\na = 2\n", r"flowlet\.toml:2: "),
        ("flowlet.toml", "bulk = 3\n", r"flowlet\.toml:1: bulk takes names and values, not 3"),
        ("pyproject.toml", "[tool]\nflowlet = 3\n", r"pyproject\.toml:2: takes names and values, not 3"),
        ("application.yaml", "workflow: [1\n", r"application\.yaml:2: "),
        ("application.yaml", "workflow:\n  store: a\n  store: b\n", r"application\.yaml:3: store stands here a second"),
        ("application.yaml", "workflow: !!python/object/apply:os.system [ls]\n", r"application\.yaml:1: "),
        ("application.yaml", "workflow:\n  graph:\n    max_iterations: yes\n", r"yaml:3: max_iterations takes a whole"),
        ("application.yml", "workflow: 3\n", r"application\.yml:1: takes names and values, not 3"),
        ("application.yaml", "workflow:\n  profiles: 3\n", r"yaml:2: profiles takes a section for each"),
    ],
)
def test_broken_files_are_named_with_their_line(file: str, text: str, says: str) -> None:
    assert re.search(says, problems(text, file=file)[0])


def test_bytes_that_are_no_text() -> None:
    Path("flowlet.toml").write_bytes(b"store = '\xff'")
    with pytest.raises(ConfigError, match=r"flowlet\.toml: cannot be read"):
        load()


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("flowlet.toml", "# as it is\nbatch_size = 4\n[graph]\nnode_timeout = 2\n"),
        ("flowlet.toml", "\ufeffbulk.batch_size = 4\ngraph = { node_timeout = 2 }\n"),
        ("pyproject.toml", "[project]\nname = 'x'\n[tool.flowlet]\nbatch_size = 4\ngraph.node_timeout = '2s'\n"),
        ("application.yaml", "server: {port: 80}\nworkflow:\n  batch_size: 4\n  graph:\n    node_timeout: 2\n"),
        ("application.yml", "workflow:\n  bulk: {batch_size: 4}\n  graph: {node_timeout: 2s}\n"),
    ],
)
def test_each_kind_of_file(file: str, text: str) -> None:
    Path(file).write_text(text, encoding="utf-8")
    assert load() == Config(bulk=BulkConfig(batch_size=4), graph=GraphConfig(node_timeout=2))


def test_files_that_are_not_about_flowlet_are_passed_over() -> None:
    Path("pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    Path("application.yaml").write_text("server: !custom {port: 80}\n", encoding="utf-8")
    assert load() == Config()


def test_two_files_and_how_to_choose() -> None:
    Path("flowlet.toml").write_text("lease = 1\n", encoding="utf-8")
    Path("pyproject.toml").write_text("[tool.flowlet]\nlease = 2\n", encoding="utf-8")
    assert problems() == [
        "flowlet.toml and pyproject.toml both configure flowlet: keep one, or name one in FLOWLET_CONFIG"
    ]
    assert load(FLOWLET_CONFIG="pyproject.toml").lease == 2
    assert Config.load("flowlet.toml", environ={"FLOWLET_CONFIG": "pyproject.toml"}).lease == 1


@pytest.mark.parametrize("name", ["none.toml", ".", "flowlet.ini", "pyproject.toml", "application.yaml"])
def test_a_named_file_must_be_there_and_say_something(name: str) -> None:
    for file in ("flowlet.ini", "pyproject.toml", "application.yaml"):
        Path(file).write_text("", encoding="utf-8")
    assert name.partition(".")[0] in problems(FLOWLET_CONFIG=name)[0]
    with pytest.raises(ConfigError):
        Config.load(name, environ={})


@pytest.mark.parametrize("name", ["flowlet.toml", "application.yaml"])
def test_what_is_nested_too_deeply_is_named(name: str) -> None:
    Path(name).write_text(("a = " if name == "flowlet.toml" else "workflow: ") + "[" * 10_000, encoding="utf-8")
    assert problems() == [f"{name}:1: nested too deeply"]


def test_a_name_too_long_for_the_system_is_a_file_that_is_not_there() -> None:
    assert "does not exist" in problems(FLOWLET_CONFIG="x" * 5000 + ".toml")[0]


def test_a_flowlet_toml_that_cannot_be_read_is_not_passed_over() -> None:
    path = Path("flowlet.toml")
    path.mkdir()
    assert "no file that can be read" in problems()[0]
    path.rmdir()
    path.symlink_to("gone.toml")
    assert "no file that can be read" in problems()[0]


def test_yaml_on_one_line() -> None:
    Path("application.yaml").write_text('{"workflow": {"lease": 3}}', encoding="utf-8")
    assert load().lease == 3


def test_numbers_that_can_only_be_mistakes() -> None:
    for value in (1e308, 10**400):
        with pytest.raises(ConfigError):
            Config(lease=value)
    with pytest.raises(ConfigError):
        BulkConfig(batch_size=2**63)
    assert BulkConfig(batch_size=2**63 - 1).batch_size == 2**63 - 1
    assert Config(lease=timedelta.max).lease > 0


def test_no_password_is_shown() -> None:
    for url in (
        "postgresql://u:hunter2@h/db",
        "postgresql://u@h/db?password=hunter2&x=1",
        "redis://h/0?PASSWORD=hunter2",
    ):
        assert "hunter2" not in repr(Config(store=url))


# ---------------------------------------------------------------- profiles
TOML = """
lease = 10
store = "sqlite:///live.db"
[graph]
max_iterations = 7
[profiles.test]
store = "memory://"
[profiles.test.graph]
node_timeout = 1
"""


def test_a_profile_is_laid_over_the_rest() -> None:
    Path("flowlet.toml").write_text(TOML, encoding="utf-8")
    wanted = Config(graph=GraphConfig(max_iterations=7, node_timeout=1))
    assert load(FLOWLET_PROFILE="test") == wanted
    assert Config.load(profile="test", environ={"FLOWLET_PROFILE": "other"}) == wanted
    assert load().store == "sqlite:///live.db"


def test_a_profile_beside_the_file() -> None:
    Path("application.yaml").write_text(
        "workflow:\n  lease: 10\n  grace: 1\n  profiles: {it: {grace: 2}}\n", encoding="utf-8"
    )
    Path("application-it.yaml").write_text("workflow:\n  lease: 20s\n", encoding="utf-8")
    Path("application-dev.yaml").write_text("server: {}\n", encoding="utf-8")
    config = load(FLOWLET_PROFILE="it")
    assert (config.lease, config.grace, config.origin("lease")) == (20.0, 2.0, "application-it.yaml:2")
    assert load(FLOWLET_PROFILE="dev").lease == 10
    assert problems(FLOWLET_PROFILE="itt") == [
        "FLOWLET_PROFILE: there is no profile 'itt'; there are dev, it; did you mean 'it'?"
    ]


def test_a_profile_that_is_not_there() -> None:
    assert problems(FLOWLET_PROFILE="test") == [
        "FLOWLET_PROFILE: there is no profile 'test'; no file here has any profile"
    ]
    assert "did you mean 'test'?" in problems(TOML, profile="tset")[0]


# ---------------------------------------------------------------- what it costs
def test_making_one_reads_nothing_and_yaml_is_asked_for() -> None:
    Path("application.yaml").write_text("workflow: {lease: 3}\n", encoding="utf-8")
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from flowlet.config import Config\n"
        "from flowlet import Flowlet\n"
        "Flowlet(); print('flowlet.config.loading' in sys.modules, 'tomllib' in sys.modules)\n"
        "try: Config.load()\n"
        "except ImportError as e: print(type(e).__name__, e)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "False False",
        f"{MissingExtra.__name__} reading YAML needs PyYAML; install it with: pip install 'flowlet[yaml]'",
    ]
