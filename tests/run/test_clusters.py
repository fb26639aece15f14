"""Clusters are found by kind, name or path, and nothing in them can be more than it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import toy_pipeline

from eo_batch.core.clusters import ClusterSpec
from eo_batch.core.errors import ConfigError
from eo_batch.core.spec import parse_cluster, parse_pipeline
from eo_batch.run.clusters import choose_cluster, known_clusters, read_cluster

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "clusters").glob("*.toml"))


def test_a_kind_changes_the_kind_alone() -> None:
    own = ClusterSpec(kind="local", threads=3, price_per_hour=2.0)
    assert choose_cluster(own, "local:4", None) == ClusterSpec(kind="local:4", threads=3, price_per_hour=2.0)


def test_a_file_beside_the_pipeline_wins_over_one_that_comes_with_the_package(tmp_path: Path) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "laptop.toml").write_text('[cluster]\nkind = "local:7"\n')
    assert choose_cluster(ClusterSpec(), "laptop", None).kind == "local:2"
    assert choose_cluster(ClusterSpec(), "laptop", None, base=tmp_path).kind == "local:7"


def test_a_file_is_found_by_its_path_from_the_pipeline(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[cluster]\nkind = "slurm"\nworkers = 3\n')
    chosen = choose_cluster(ClusterSpec(price_per_hour=1.0), "mine.toml", 5, base=tmp_path)
    assert (chosen.kind, chosen.workers, chosen.price_per_hour) == ("slurm", 5, None)


def test_a_wrong_name_is_an_error_that_knows_better() -> None:
    with pytest.raises(ConfigError, match='unknown cluster "slurm-gup".*Did you mean "slurm-gpu"'):
        choose_cluster(ClusterSpec(), "slurm-gup", None)


def test_a_path_that_leads_nowhere_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        choose_cluster(ClusterSpec(), "nowhere.toml", None, base=tmp_path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_cluster_can_be_named_and_explains_itself(path: Path) -> None:
    assert known_clusters(Path("/nowhere"))[path.stem] == path
    read_cluster(path)
    text = path.read_text()
    assert text.startswith("# ")
    assert "# price_per_hour" in text


@pytest.mark.parametrize(
    "line",
    [
        'queue = "main; rm -rf /"',
        'queue = "main\\n#SBATCH --uid=0"',
        'account = "$(id)"',
        'interface = "lo --protocol tcp"',
        'log_folder = "/tmp/`id`"',
        'shared_folder = "/tmp/a b"',
        'setup = ["true\\nid"]',
        'directives = ["id"]',
        'directives = ["--x\\nid"]',
        'walltime = "1 hour"',
    ],
)
def test_texts_for_a_job_script_are_words_and_lines(line: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.batch\."):
        parse_cluster(f'[cluster]\nkind = "slurm"\n[cluster.batch]\n{line}\n'.encode(), where="mine.toml")


@pytest.mark.parametrize(
    "table",
    [
        '[cluster.batch]\nsetup = ["curl example.org | sh"]',
        '[cluster.batch]\ndirectives = ["--wrap=id"]',
        '[cluster.kubernetes]\nimage = "example.org/strange"',
        '[cluster]\nkind = "tcp://203.0.113.7:8786"',
    ],
)
def test_a_pipeline_cannot_start_code_elsewhere(table: str) -> None:
    with pytest.raises(ConfigError, match="a pipeline is data"):
        parse_pipeline(toy_pipeline(extra=table).encode(), where="stranger.toml")


@pytest.mark.parametrize(
    ("written", "meant"),
    [("10.1.2.3:8786", "tcp://10.1.2.3:8786"), ("tcp://10.1.2.3", "tcp://10.1.2.3:8786"), ("head.lan", "tcp://head.lan:8786")],
)
def test_half_an_address_is_completed_in_the_hint(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f'Did you mean "{meant}"'):
        choose_cluster(ClusterSpec(), written, None)
