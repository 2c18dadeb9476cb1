"""Settings read again while serving: what is safe changes, the rest is refused with its reason."""

import signal
import tempfile
from pathlib import Path

import httpx
import pytest

from service.errors import BadSetting
from service.setting_sources import RELOADABLE, load_settings, reloaded
from service.settings import Settings
from tests.service.gateway_process import gateway_process
from tests.service.world import request

ONE = {"models": {"home": {"package": "somewhere"}}}


def reloads(client: httpx.Client, outcome: str) -> float:
    """How often settings were read again, with that outcome."""
    lines = client.get("/metrics").text.splitlines()
    name = f'mtgr_reloads_total{{outcome="{outcome}"}} '
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_sighup_takes_over_what_is_safe_and_nothing_else() -> None:
    """A scene's top_k, the deadline and the body limit change under SIGHUP; a file that names a
    limit of the engine, or nonsense, changes nothing, not even its safe part."""
    with tempfile.TemporaryDirectory(prefix="mtgr-") as name:
        directory = Path(name)
        file = directory / "settings.toml"
        file.write_text("max_body_bytes = 100000")
        with gateway_process(directory, file) as (client, process):

            def reload(text: str, outcome: str) -> None:
                file.write_text(text)
                before = reloads(client, outcome)
                process.send_signal(signal.SIGHUP)
                while reloads(client, outcome) == before:
                    assert process.poll() is None

            def top_k() -> int:
                return len(
                    client.post("/v1/rank", json=request(9, deadline_ms=30_000)).json()["items"]
                )

            assert top_k() == 9
            reload('[scenes.home]\nmodel = "home"\ntop_k = 4', "taken")
            assert top_k() == 4
            reload('max_candidates = 1\n[scenes.home]\nmodel = "home"\ntop_k = 5', "refused")
            reload('[scenes.home]\nmodel = "away"\ntop_k = 6', "refused")
            reload("top_k = [", "refused")
            assert top_k() == 4
            reload("max_body_bytes = 1024", "taken")
            assert client.post("/v1/rank", json=request(40)).status_code == 413


def test_the_refusal_names_what_needs_a_restart() -> None:
    """Each setting that may not change is named, and engines have another way."""
    old = load_settings(ONE, Settings)
    new = load_settings({"models": {"home": {"package": "else"}}, "port": 1}, Settings)
    with pytest.raises(BadSetting, match=r"port, models: changing it needs a restart.*/switch"):
        reloaded(old, new)


def test_a_new_setting_needs_a_restart_until_it_is_known_to_be_safe() -> None:
    """What may change is listed; the list names settings that exist."""
    assert set(Settings.model_fields) >= RELOADABLE


def test_a_file_is_between_the_environment_and_the_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file wins over the environment, a flag over both; a fault in it names the file."""
    file = tmp_path / "settings.toml"
    file.write_text("max_events = 2\nmax_candidates = 2")
    monkeypatch.setenv("MTGR_MAX_EVENTS", "1")
    monkeypatch.setenv("MTGR_CLOCK_SKEW_MS", "1")
    flags = ONE | {"settings_file": str(file), "max_candidates": "3"}
    settings = load_settings(flags, Settings)
    assert (settings.clock_skew_ms, settings.max_events, settings.max_candidates) == (1, 2, 3)
    file.write_text("= 3")
    with pytest.raises(BadSetting, match=r"settings_file: .*settings.toml: "):
        load_settings(flags, Settings)
