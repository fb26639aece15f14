"""Pipeline and catalog files: what is accepted, what is refused and in which words."""

from __future__ import annotations

import pytest

from eo_batch.core.errors import ConfigError
from eo_batch.core.spec import MAX_CONFIG_BYTES, PipelineSpec, parse_catalog, parse_pipeline

PIPELINE = """
name = "boadella-water"
[region]
bbox = [2.80, 42.32, 2.86, 42.36]
start = "2019-06-01"
end = "2019-07-01"
[source]
catalog = "local"
collections = ["sentinel-2-l2a"]
max_cloud_cover = 60
bands = ["green", "red", "nir", "swir16"]
[grid]
crs = "auto"
resolution = 10
chunk_px = 2048
[time]
step = "scene"
composite = "first"
[model]
name = "spectral"
window_px = 512
overlap = 0.25
[[prompts]]
text = "water"
threshold = 0.5
min_area_m2 = 500
[[prompts]]
text = "  Burnt   ground "
[output]
scores = true
"""


def parse(text: str = PIPELINE) -> PipelineSpec:
    return parse_pipeline(text.encode(), where="P.toml")


def refused(old: str, new: str) -> ConfigError:
    assert old in PIPELINE
    with pytest.raises(ConfigError) as caught:
        parse(PIPELINE.replace(old, new))
    assert "P.toml" in str(caught.value) or caught.value.code == "prompt-invalid"
    return caught.value


def test_documented_pipeline_is_read_as_written():
    spec = parse()
    assert spec.region.bbox == (2.80, 42.32, 2.86, 42.36)
    assert (spec.start.isoformat(), spec.end.isoformat()) == ("2019-06-01T00:00:00+00:00", "2019-07-01T00:00:00+00:00")
    assert spec.source.bands == ["green", "red", "nir", "swir16"]
    assert (spec.grid.resolution, spec.grid.chunk_px) == (10.0, 2048)
    assert (spec.model.name, spec.model.window_px, spec.model.overlap) == ("spectral", 512, 0.25)
    assert spec.output.scores


def test_prompts_are_normalised_and_keep_their_order():
    prompts = parse().prompt_set
    assert prompts.texts == ("water", "Burnt ground")
    assert [(p.threshold, p.min_area_m2) for p in prompts] == [(0.5, 500.0), (0.5, 0.0)]


@pytest.mark.parametrize(
    ("old", "new", "key", "hint"),
    [
        ("max_cloud_cover", "max_clouds_cover", "source.max_clouds_cover", 'Did you mean "max_cloud_cover"'),
        ("window_px", "windowpx", "model.windowpx", 'Did you mean "window_px"'),
        ("threshold", "treshold", "prompts.1.treshold", 'Did you mean "threshold"'),
        ('name = "boadella', 'nam = "boadella', "nam", 'Did you mean "name"'),
        ("[output]", "[outputs]", "outputs", 'Did you mean "output"'),
        ("scores", "zzz", "output.zzz", "Known keys here: scores."),
    ],
)
def test_unknown_key_is_named_with_the_nearest_known_one(old, new, key, hint):
    error = refused(old, new)
    assert error.code == "config-unknown-key"
    assert f'unknown key "{key}"' in str(error)
    assert hint in str(error)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("resolution = 10", "resolution = 0", "grid.resolution"),
        ("resolution = 10", "resolution = nan", "grid.resolution"),
        ("resolution = 10", "resolution = inf", "grid.resolution"),
        ("resolution = 10", "", "grid.resolution"),
        ("chunk_px = 2048", "chunk_px = 63", "grid.chunk_px"),
        ("chunk_px = 2048", 'chunk_px = "big"', "grid.chunk_px"),
        ("chunk_px = 2048", "chunk_px = 100.5", "grid.chunk_px"),
        ("overlap = 0.25", "overlap = 1", "model.overlap"),
        ("overlap = 0.25", "overlap = -0.1", "model.overlap"),
        ('step = "scene"', 'step = "week"', "time.step"),
        ('composite = "first"', 'composite = "last"', "time.composite"),
        ("threshold = 0.5", "threshold = 1", "prompts.1.threshold"),
        ("threshold = 0.5", "threshold = 0", "prompts.1.threshold"),
        ("min_area_m2 = 500", "min_area_m2 = -1", "prompts.1.min_area_m2"),
        ('"green", "red"', '"green", "green"', "source.bands"),
        ('["green", "red", "nir", "swir16"]', "[]", "source.bands"),
        ('["sentinel-2-l2a"]', "[]", "source.collections"),
        ('end = "2019-07-01"', 'end = "2019-06-01"', "region"),
        ('end = "2019-07-01"', 'end = "tomorrow"', "region.end"),
        ("bbox = [2.80, 42.32, 2.86, 42.36]", "bbox = [2.80, 42.32, 2.86]", "region.bbox"),
        ("bbox = [2.80, 42.32, 2.86, 42.36]", "", "region: give either bbox or file"),
        ('start = "2019-06-01"', 'start = "2019-06-01"\nfile = "a.geojson"', "region: give either bbox or file"),
        ('name = "boadella-water"', 'name = "../evil"', "name"),
        ('name = "spectral"', 'name = "a/b"', "model.name"),
    ],
)
def test_value_that_makes_no_sense_is_named_by_its_key(old, new, key):
    error = refused(old, new)
    assert error.code == "config-invalid"
    assert key in str(error)


def test_empty_prompt_is_refused_when_the_file_is_read():
    assert refused('text = "water"', 'text = " "').code == "prompt-invalid"


def test_same_prompt_twice_is_refused_when_the_file_is_read():
    assert refused("  Burnt   ground ", " water").code == "prompt-invalid"


@pytest.mark.parametrize("data", [b"name = ", b"\xff\xfe", b"[region\n"])
def test_text_that_is_no_toml_is_refused(data):
    with pytest.raises(ConfigError, match="not TOML"):
        parse_pipeline(data, where="P.toml")


def test_oversized_file_is_refused_before_it_is_parsed():
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(b"#" * (MAX_CONFIG_BYTES + 1), where="P.toml")
    assert caught.value.code == "config-too-large"


def test_file_without_anything_is_refused():
    with pytest.raises(ConfigError, match="config-invalid"):
        parse("")


def test_limits_cache_and_cluster_are_not_part_of_the_identity():
    tables = '[limits]\nmemory_gb = 3\n[cache]\nfeatures = true\nfeatures_gb = 2\n[cluster]\nkind = "serial"\n'
    assert parse(PIPELINE + tables).digest == parse().digest


def test_no_features_are_kept_unless_somebody_asks():
    assert not parse().cache.features


@pytest.mark.parametrize(
    ("table", "text"),
    [("features_gb = 3", "cache: features_gb limits nothing"), ("features = true\nfeatures_gb = 0", "cache.features_gb")],
)
def test_limit_of_the_cache_that_makes_no_sense_is_refused(table, text):
    with pytest.raises(ConfigError, match=text):
        parse(f"{PIPELINE}[cache]\n{table}\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.80, ", "2.81, "),
        ("resolution = 10", "resolution = 20"),
        ('text = "water"', 'text = "lake"'),
        ("overlap = 0.25", "overlap = 0.5"),
        ('"green", "red"', '"red", "green"'),
        ("scores = true", "scores = false"),
    ],
)
def test_whatever_decides_the_result_is_part_of_the_identity(old, new):
    assert parse(PIPELINE.replace(old, new)).digest != parse().digest


def test_identity_does_not_depend_on_the_order_of_the_file():
    head, rest = PIPELINE.split("[output]")
    moved = head.replace("[time]", "[output]" + rest + "[time]")
    assert parse(moved).digest == parse().digest


def test_identity_survives_json():
    spec = parse()
    assert PipelineSpec.model_validate(spec.identity).digest == spec.digest


def test_options_of_a_model_keep_their_types():
    options = parse(PIPELINE.replace("overlap = 0.25", 'options = {a = 1, b = 1.5, c = true, d = "x"}')).model.options
    assert [(type(value), value) for value in options.values()] == [(int, 1), (float, 1.5), (bool, True), (str, "x")]


def test_spec_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        parse().grid.resolution = 20


def test_assets_are_keys_or_key_and_index():
    assets = '[source.assets]\nred = "B04"\nnir = {asset = "stack", index = 8}\n[grid]'
    spec = parse(PIPELINE.replace("[grid]", assets))
    assert spec.source.assets["red"] == "B04"
    assert (spec.source.assets["nir"].asset, spec.source.assets["nir"].index) == ("stack", 8)


def test_mistake_inside_an_asset_is_named_by_its_band():
    error = refused("[grid]", '[source.assets]\nnir = {asset = "stack", idx = 8}\n[grid]')
    assert "source.assets.nir" in str(error)


def test_catalog_file_is_read_and_its_unknown_keys_refused():
    text = b'title = "x"\nurl = "https://example.org"\n[collections.a]\nscale = 0.0001\n'
    assert parse_catalog(text, where="c.toml").collections["a"].scale == 0.0001
    with pytest.raises(ConfigError, match=r'unknown key "collections.a.scal".*Did you mean "scale"'):
        parse_catalog(text.replace(b"scale", b"scal"), where="c.toml")
