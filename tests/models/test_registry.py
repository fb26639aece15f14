"""Built-in segmenters, and those of packages that are really on the import path."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace

import pytest

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.core.spec import ModelSpec
from eo_batch.models import registry
from eo_batch.models.registry import BUILT_IN, list_segmenters, load_segmenter
from eo_batch.models.segmenter import Segmenter


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package with one segmenter entry point, as pip leaves it on disk."""

    def _install(name: str, code: str, *, target: str = "plugin_under_test:make") -> None:
        info = tmp_path / "eo_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eo-plugin\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[eo_batch.segmenters]\n{name} = {target}\n")
        (tmp_path / "plugin_under_test.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "plugin_under_test", raising=False)

    yield _install
    sys.modules.pop("plugin_under_test", None)


GOOD = """
    from eo_batch.models.probe import WindowMean

    def make(model, bands):
        return WindowMean(tuple(bands), cost=int(model.options.get("cost", 0)))
"""


@pytest.mark.parametrize("name", ["spectral", "window-mean"])
def test_every_built_in_segmenter_without_weights_loads(name):
    segmenter = load_segmenter(ModelSpec(name=name), ["green", "nir"])
    assert isinstance(segmenter, Segmenter)
    assert segmenter.info.name == name


def test_unknown_name_lists_the_known_ones_and_suggests():
    with pytest.raises(ConfigError, match='Did you mean "spectral"') as caught:
        load_segmenter(ModelSpec(name="spectal"), ["green"])
    assert "window-mean" in caught.value.fix


def test_installed_package_adds_a_segmenter(install):
    install("fancy", GOOD)
    segmenter = load_segmenter(ModelSpec(name="fancy", options={"cost": 3}), ["green"])
    assert segmenter.cost == 3
    assert [entry.origin for entry in list_segmenters() if entry.name == "fancy"] == ["eo-plugin"]


def test_listing_imports_no_plugin(install):
    install("fancy", "raise RuntimeError('imported')")
    assert "fancy" in {entry.name for entry in list_segmenters()}


def test_installed_package_cannot_replace_a_built_in_segmenter(install):
    install("spectral", "raise RuntimeError('imported')")
    assert load_segmenter(ModelSpec(name="spectral"), ["green"]).info.name == "spectral"
    assert [entry.origin for entry in list_segmenters() if entry.name == "spectral"] == ["built in"]


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def make(model, bands): raise RuntimeError('weights are gone')", "weights are gone"),
        ("def make(model, bands): return 5", "int, which is no Segmenter"),
        ("other = 1", "AttributeError"),
    ],
)
def test_broken_plugin_is_a_model_error_that_names_its_distribution(install, code, why):
    install("fancy", code)
    with pytest.raises(ModelError, match=why) as caught:
        load_segmenter(ModelSpec(name="fancy"), ["green"])
    assert caught.value.code == "model-load"
    assert '"eo-plugin"' in str(caught.value)


def test_a_plugins_own_config_error_reaches_the_user_unchanged(install):
    install(
        "fancy",
        """
        from eo_batch.core.errors import ConfigError

        def make(model, bands):
            raise ConfigError("config-invalid", "no such weights", where="model.options.weights")
        """,
    )
    with pytest.raises(ConfigError, match="no such weights"):
        load_segmenter(ModelSpec(name="fancy"), ["green"])


def test_window_size_that_the_segmenter_cannot_take_is_refused(install):
    install(
        "fixed",
        """
        from dataclasses import replace
        from eo_batch.models.probe import WindowMean

        def make(model, bands):
            segmenter = WindowMean(tuple(bands))
            object.__setattr__(segmenter, "info", replace(segmenter.info, window_px=896))
            return segmenter
        """,
    )
    assert load_segmenter(ModelSpec(name="fixed", window_px=896), ["red"]).info.window_px == 896
    with pytest.raises(ConfigError, match="window_px = 896"):
        load_segmenter(ModelSpec(name="fixed", window_px=512), ["red"])


def test_missing_extra_is_told_with_the_command_that_brings_it(monkeypatch):
    entry = replace(BUILT_IN["spectral"], needs=("no_such_module_at_all",), extra="models")
    monkeypatch.setattr(registry, "BUILT_IN", {"spectral": entry})
    assert not entry.is_available
    assert entry.state == 'needs libraries: pip install "eo-batch[models]"'
    with pytest.raises(ConfigError, match=r'pip install "eo-batch\[models\]"'):
        load_segmenter(ModelSpec(name="spectral"), ["green"])


def test_available_segmenters_need_no_advice():
    assert [entry.advice for entry in BUILT_IN.values()] == [""] * len(BUILT_IN)


def test_the_state_of_a_network_says_whether_its_weights_are_here(tmp_path, monkeypatch):
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path))
    entry = BUILT_IN["remotesam"]
    if not entry.is_available:
        assert entry.state == f"needs libraries: {entry.advice}"
        return
    assert entry.state == "weights missing: eo-batch models fetch remotesam"
    (tmp_path / "remotesam").mkdir()
    (tmp_path / "remotesam" / "remotesam.safetensors").write_bytes(b"")
    assert entry.state == "weights missing: eo-batch models fetch remotesam"
    (tmp_path / "remotesam" / "vocab.txt").write_bytes(b"")
    assert entry.state == "ready"
    assert BUILT_IN["spectral"].state == "ready"
