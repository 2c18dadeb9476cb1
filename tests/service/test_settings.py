"""Settings by environment and flags: what is unknown or contradictory is refused in words."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli import load_features, rank, serve
from service.errors import BadSetting
from service.features.embedded import embedded_server
from service.setting_sources import load_settings
from service.settings import Settings, StoreSettings

ONE = {"models": {"home": {"package": "somewhere"}}}
TWO: dict[str, Any] = {"models": {"a": {"package": "x"}, "b": {"package": "y"}}}


def through_triton(addresses: list[str], http: list[str] | None = None) -> dict[str, Any]:
    """A model at these servers."""
    model = {"package": "x", "backend": "triton", "triton": addresses, "triton_http": http or []}
    return {"models": {"home": model}}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine's own."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"MTGR_{name.upper()}", raising=False)


def test_one_model_is_one_scene() -> None:
    """The least that serves is one package; its scene has its name and is the default."""
    settings = load_settings(ONE, Settings)
    assert settings.scenes["home"].model == "home"
    assert settings.scenes["home"].fallback == ("recall_score", "popularity")


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both name the same settings."""
    monkeypatch.setenv("MTGR_MODELS", '{"home": {"package": "p", "threads": 3}}')
    monkeypatch.setenv("MTGR_PORT", "1234")
    monkeypatch.setenv("MTGR_REDIS_TIMEOUT_MS", "7")
    settings = load_settings({"port": "4321"}, Settings)
    assert (settings.port, settings.redis_timeout_ms) == (4321, 7)
    assert settings.models["home"].threads == 3


def test_models_are_json_in_flags_too() -> None:
    """`--models` reads the JSON that MTGR_MODELS reads."""
    settings = load_settings({"models": '{"home": {"package": "p"}}'}, Settings)
    assert settings.models["home"].package == Path("p")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"models": "{"}, "models: expected JSON"),
        ({}, "models: Field required"),
        ({"models": {}}, "at least one package"),
        (ONE | {"max_inflight": 3}, "max_inflight"),
        (ONE | {"port": "http"}, "port: Input should be a valid integer"),
        (ONE | {"redis_timeout_ms": 0}, "redis_timeout_ms"),
        ({"models": {"home": {"package": "p", "gpu": 1}}}, "models.home.gpu"),
        ({"models": {"Home page": {"package": "p"}}}, "models.Home page"),
        (ONE | {"scenes": {"feed": {"model": "away"}}}, "scenes.feed.model: 'away' is not one of"),
        (ONE | {"default_scene": "feed"}, "default_scene: not one of"),
        (ONE | {"scenes": {"feed": {"model": "home", "fallback": ["luck"]}}}, "fallback.0"),
        (TWO, "default_scene: needed"),
        (
            through_triton(["http://a:8001"]),
            "triton.0: Value error, 'http://a:8001': expected host",
        ),
        (through_triton(["a:8001", "b:8001"], ["a:8000"]), "triton_http: one for each of triton"),
        (ONE | {"redis_url": "http://x"}, "redis_url: expected redis://"),
        (ONE | {"redis_url": "redis://x", "redis_dir": "d"}, "exclude each other"),
        (ONE | {"default_deadline_ms": 90_000}, "default_deadline_ms exceeds"),
    ],
)
def test_what_cannot_be_is_refused(flags: dict[str, Any], words: str) -> None:
    """Each fault is told with the setting's name."""
    with pytest.raises(BadSetting) as refused:
        load_settings(flags, Settings)
    assert words in str(refused.value)


def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An environment variable of ours that nothing reads is a mistake."""
    monkeypatch.setenv("MTGR_REDIS_TIMEOUT", "7")
    with pytest.raises(BadSetting, match="did you mean MTGR_REDIS_TIMEOUT_MS"):
        load_settings({}, StoreSettings)


def test_every_setting_has_help_with_its_unit() -> None:
    """`--help` lists every setting; whatever counts time or bytes says in what."""
    text = " ".join(CliRunner().invoke(serve, ["--help"]).output.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description
        for ending, unit in (("_ms", "milliseconds"), ("_s", "seconds"), ("_bytes", "bytes")):
            if name.endswith(ending):
                assert unit in field.description


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (serve, ["p", "--models", "{}"], "PACKAGE and --models exclude each other"),
        (serve, ["nowhere", "--redis-url", "redis://localhost:1"], "nowhere"),
        (serve, ["p", "--port", "-1"], "port: Input should be greater than or equal to 0"),
        (rank, ["-", "--url", "http://127.0.0.1:1"], "is 'mtgr serve' running there?"),
        (load_features, ["nowhere"], "does not exist"),
    ],
)
def test_a_command_that_cannot_run_says_why(command: Any, arguments: list[str], words: str) -> None:
    """Helpful words, a failing status, and no traceback."""
    result = CliRunner().invoke(command, arguments, input="{}")
    assert result.exit_code != 0
    assert words in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_one_directory_serves_one_gateway(tmp_path: Path) -> None:
    """A second gateway is refused and told how to reach the first one's server."""
    with (
        embedded_server(tmp_path) as url,
        pytest.raises(BadSetting, match=f"redis_url={url}"),
        embedded_server(tmp_path),
    ):
        raise AssertionError


def test_a_server_that_cannot_start_tells_its_own_words(tmp_path: Path) -> None:
    """The last lines of its log are the error."""
    (tmp_path / "appendonlydir").write_text("a file where a directory is due")
    with pytest.raises(BadSetting, match="did not start"), embedded_server(tmp_path):
        raise AssertionError


def test_a_socket_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    """Said before anything is started."""
    with pytest.raises(BadSetting, match="shorten"), embedded_server(tmp_path / ("x" * 100)):
        raise AssertionError
