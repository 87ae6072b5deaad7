"""Layers, origins, bindings of addresses to engines, and what a project file may not do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginekit import config
from enginekit.errors import ConfigError, UnknownSetting, UntrustedOrigin
from enginekit.kit.address import target_for


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository with a sub-folder, and a user configuration folder, both empty."""
    (tmp_path / "repo" / ".git").mkdir(parents=True)
    (tmp_path / "repo" / "sub").mkdir()
    user = tmp_path / "user"
    user.mkdir()
    return tmp_path


def load(place: Path, arguments=None, env=None, project="", user="", pyproject=""):
    if project:
        (place / "repo" / "enginekit.toml").write_text(project)
    if pyproject:
        (place / "repo" / "pyproject.toml").write_text(pyproject)
    if user:
        (place / "user" / "config.toml").write_text(user)
    environ = {"ENGINEKIT_CONFIG_DIR": str(place / "user"), **(env or {})}
    return config.load(arguments, environ=environ, directory=place / "repo" / "sub")


def test_argument_beats_environment_beats_project_beats_user(place):
    layers = {
        "arguments": {"model": "a"},
        "env": {"ENGINEKIT_MODEL": "e"},
        "project": 'model = "p"',
        "user": 'model = "u"',
    }
    seen = []
    for key in ("arguments", "env", "project", "user"):
        loaded = load(place, **layers)
        setting = loaded.find("model")
        seen.append((setting.value, setting.layer))
        layers.pop(key)
        if key == "project":
            (place / "repo" / "enginekit.toml").unlink()
    assert seen == [("a", "argument"), ("e", "environment"), ("p", "project"), ("u", "user")]


def test_every_value_says_where_it_comes_from(place):
    loaded = load(place, env={"ENGINEKIT_ENGINE": "vllm"}, project="timeout = 30")
    assert loaded.find("engine").where == "ENGINEKIT_ENGINE"
    assert loaded.find("timeout").where == f"{place / 'repo' / 'enginekit.toml'} [timeout]"


def test_pyproject_table_is_a_project_file(place):
    loaded = load(place, pyproject='[tool.enginekit]\nmodel = "p"')
    assert loaded.find("model").value == "p"
    assert loaded.find("model").where.endswith("pyproject.toml [tool.enginekit.model]")


def test_the_search_stops_at_the_root_of_the_repository(place):
    (place / "enginekit.toml").write_text('model = "outside"')
    assert load(place).find("model") is None


def test_an_address_does_not_follow_to_another_engine(place):
    """ENGINEKIT_ENGINE=ollama must not talk Ollama's wire to the project's vLLM."""
    project = 'engine = "vllm"\nbase_url = "http://gpu:8000"\nmodel = "big"'
    loaded = load(place, env={"ENGINEKIT_ENGINE": "ollama"}, project=project)
    assert loaded.for_engine("base_url", "ollama") is None
    assert loaded.for_engine("model", "ollama") is None
    assert loaded.for_engine("base_url", "vllm").value == "http://gpu:8000"


def test_an_address_without_an_engine_in_its_layer_is_for_any(place):
    loaded = load(place, env={"ENGINEKIT_ENGINE": "ollama"}, project='base_url = "http://b:1"')
    assert loaded.for_engine("base_url", "ollama").value == "http://b:1"


def test_each_engine_has_its_own_table_and_variables(place):
    loaded = load(
        place,
        env={"ENGINEKIT_VLLM_URL": "http://e:1", "ENGINEKIT_VLLM_API_KEY": "k"},
        project='[engines.vllm]\nurl = "http://p:1"\n[engines.attic]\nlike = "vllm"\nurl = "http://a"',
    )
    assert loaded.for_engine("base_url", "vllm").value == "http://e:1"
    assert loaded.for_engine("api_key", "vllm").where == "ENGINEKIT_VLLM_API_KEY"
    assert loaded.custom_engines() == ("attic",)
    assert loaded.for_engine("base_url", "attic").layer == "project"


@pytest.mark.parametrize(
    ("project", "what"),
    [
        ('api_key = "k"', "may not set 'api_key'"),
        ('client_cert = "c.pem"', "may not set 'client_cert'"),
        ('[engines.vllm]\napi_key = "k"', "may not set 'api_key'"),
        ('ca_file = "../../etc/ca.pem"', "outside the project"),
        ('model = "/etc/passwd"', "outside the project"),
        ('model = "~/m.gguf"', "outside the project"),
    ],
)
def test_a_project_file_may_not(place, project, what):
    with pytest.raises(ConfigError, match=what):
        load(place, project=project)


def test_a_path_in_a_file_is_relative_to_the_file(place):
    loaded = load(place, project='ca_file = "certs/ca.pem"')
    assert loaded.value("ca_file") == str(place / "repo" / "certs" / "ca.pem")


def test_unknown_keys_are_refused_with_the_nearest_known_one(place):
    with pytest.raises(UnknownSetting, match="did you mean 'model'"):
        load(place, arguments={"modle": "x"})
    with pytest.raises(UnknownSetting, match="did you mean 'base_url'"):
        load(place, project='baseurl = "x"')


def test_an_unknown_variable_is_a_note_not_a_silence(place):
    loaded = load(place, env={"ENGINEKIT_MODLE": "x"})
    assert loaded.notes == (
        "ENGINEKIT_MODLE is set but enginekit does not know it; did you mean ENGINEKIT_MODEL?",
    )


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ENGINEKIT_TIMEOUT": "soon"}, "is not a number"),
        ({"ENGINEKIT_TIMEOUT": "nan"}, "must be finite"),
        ({"ENGINEKIT_MAX_RETRIES": "1.5"}, "is not a whole number"),
        ({"ENGINEKIT_VERIFY": "perhaps"}, "is not true or false"),
        ({"ENGINEKIT_LOSSY": "maybe"}, "must be one of warn, error"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_place(place, env, message):
    with pytest.raises(ConfigError, match=message):
        load(place, env=env)


def test_broken_toml_names_the_file(place):
    with pytest.raises(ConfigError, match=r"enginekit\.toml is not valid TOML"):
        load(place, project="model = ")


def check(loaded):
    key = loaded.for_engine("api_key", "vllm")
    url = loaded.for_engine("base_url", "vllm")
    loaded.check_key(key, url, url.value)


def test_a_key_from_the_environment_is_never_sent_to_a_projects_address(place):
    env = {"ENGINEKIT_API_KEY": "secret"}
    loaded = load(place, env=env, project='engine = "vllm"\nbase_url = "http://evil:1"')
    with pytest.raises(UntrustedOrigin) as caught:
        check(loaded)
    assert "ENGINEKIT_API_KEY" in str(caught.value)
    assert "enginekit.toml" in str(caught.value)
    assert "enginekit trust http://evil:1" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_trust_is_remembered_and_a_container_may_trust_all(place):
    env = {"ENGINEKIT_API_KEY": "secret"}
    project = 'engine = "vllm"\nbase_url = "http://gpu:1"'
    config.trust("http://gpu:1", {"ENGINEKIT_CONFIG_DIR": str(place / "user")})
    check(load(place, env=env, project=project))
    (place / "user" / "trusted").unlink()
    check(load(place, env={**env, "ENGINEKIT_TRUST_PROJECT": "1"}, project=project))


def test_a_key_goes_to_an_address_the_user_named(place):
    check(load(place, arguments={"api_key": "k"}, env={"ENGINEKIT_BASE_URL": "http://b:1"}))
    check(load(place, env={"ENGINEKIT_API_KEY": "k"}, user='base_url = "http://b:1"'))


def test_a_key_is_never_shown(place):
    loaded = load(place, env={"ENGINEKIT_API_KEY": "secret", "ENGINEKIT_VLLM_API_KEY": "secret"})
    assert "secret" not in " ".join(row.shown for row in loaded.rows())


def test_what_belongs_to_another_engine_is_not_in_effect(place):
    project = 'engine = "vllm"\nmodel = "big"\nbase_url = "http://gpu:1"\nlossy = "error"'
    loaded = load(place, env={"ENGINEKIT_ENGINE": "ollama"}, project=project)
    assert [row.name for row in loaded.rows()] == ["engine", "lossy"]


@pytest.mark.parametrize("way", ['proxy = "http://evil:1"', "verify = false", 'ca_file = "ca.pem"'])
def test_a_key_does_not_take_a_way_that_a_project_chose(place, way):
    env = {"ENGINEKIT_API_KEY": "secret", "ENGINEKIT_BASE_URL": "https://gpu:1"}
    loaded = load(place, env=env, project=way)
    with pytest.raises(UntrustedOrigin, match=r"enginekit\.toml"):
        target_for(loaded, "vllm", loaded.for_engine("base_url", "vllm"))
    config.trust("https://gpu:1", {"ENGINEKIT_CONFIG_DIR": str(place / "user")})
    loaded = load(place, env=env, project=way)
    assert target_for(loaded, "vllm", loaded.for_engine("base_url", "vllm")).headers


@pytest.mark.parametrize("model", ["a/../../x.gguf", "..\\x.gguf", "../x.gguf"])
def test_a_projects_model_may_not_climb_out(place, model):
    with pytest.raises(ConfigError, match="outside the project"):
        load(place, project=f"model = '{model}'")


@pytest.mark.skipif(
    not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give a file away"
)
@pytest.mark.parametrize("name", ["enginekit.toml", "pyproject.toml"])
def test_a_file_of_another_user_in_a_folder_above_is_not_read(place, monkeypatch, name):
    """As in `/tmp`, where everybody may write and everybody works."""
    work = place / "work"
    work.mkdir()
    planted = place / name
    header = "[tool.enginekit]\n" if name == "pyproject.toml" else ""
    planted.write_text(f'{header}engine = "vllm"\nbase_url = "http://elsewhere:1"\n')
    environ = {"ENGINEKIT_CONFIG_DIR": str(place / "user")}
    assert config.load(environ=environ, directory=work).project_file == planted
    os.chown(planted, 54321, 54321)
    loaded = config.load(environ=environ, directory=work)
    assert loaded.project_file is None
    assert loaded.find("base_url") is None
    assert loaded.notes == (f"{planted} belongs to another user and is not read",)
    # A container that works in a folder of the host's user reads that user's file.
    os.chown(work, 54321, 54321)
    assert config.load(environ=environ, directory=work).project_file == planted


def test_a_tool_entry_that_is_no_table_is_not_ours(place):
    assert load(place, pyproject='tool = "none"').project_file is None


@pytest.mark.parametrize(
    ("name", "value"), [("context", 0), ("slots", -2), ("threads", 0), ("max_retries", -1)]
)
def test_a_number_that_cannot_be_is_refused_where_it_was_set(place, name, value):
    with pytest.raises(ConfigError, match=f"ENGINEKIT_{name.upper()}: {name} must be at least"):
        load(place, env={f"ENGINEKIT_{name.upper()}": str(value)})
    with pytest.raises(ConfigError, match=rf"enginekit\.toml \[{name}\]: {name} must be at least"):
        load(place, project=f"{name} = {value}")
