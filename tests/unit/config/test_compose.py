"""Groups, overrides and a run's saved config become one checked config."""

import pytest
import yaml

from llmtune.config.compose import Composition, compose
from llmtune.config.experiments import names_data
from llmtune.config.run import RunConfig
from llmtune.config.saved import load_config, load_plain, save_config
from llmtune.errors import ConfigError, RunError

pytestmark = pytest.mark.fast


def composed(*overrides: str, saved=None) -> RunConfig:
    config = compose(Composition(overrides=overrides, saved=saved))
    assert isinstance(config, RunConfig)
    return config


def test_the_learning_rate_follows_the_method_until_it_is_set() -> None:
    assert composed("data=embedded_code", "method=full").train.learning_rate == 2e-5
    assert composed("data=embedded_code", "method=qlora").train.learning_rate == 2e-4
    assert composed("data=embedded_code", "method=full", "++train.learning_rate=1e-3").train.learning_rate == 1e-3


def test_a_typed_group_beats_the_experiments() -> None:
    config = composed("experiment=quickstart", "method=qlora", "++data.num_examples=7")
    assert (config.data.source, config.data.num_examples, config.method.name) == ("embedded", 7, "qlora")


@pytest.mark.parametrize("override", ["method=qlra", "experiment=quickstrt", "model=gpt22"])
def test_an_unknown_option_names_the_nearest(override) -> None:
    with pytest.raises(ConfigError, match=r"there is no such option\. Did you mean (qlora|quickstart|gpt2)\?"):
        composed(override, "data=embedded_code")


@pytest.mark.parametrize("override", ["experiment=[quickstart,balancd]", "experiment=[balancd,quickstart]"])
def test_an_unknown_experiment_of_a_list_names_the_nearest(override) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(override, "data=embedded_code")
    (problem,) = caught.value.problems
    assert problem.startswith("experiment=balancd: there is no such option. Did you mean balanced? Known: balanced, ")
    assert "\n" not in problem


def test_an_experiment_that_builds_on_nothing_is_named(tmp_path, monkeypatch) -> None:
    experiment(tmp_path, monkeypatch, "# @package _global_\ndefaults:\n  - nothing\n")
    with pytest.raises(
        ConfigError, match=r"^experiments/mine.yaml: experiment=nothing: there is no such option\. Known"
    ):
        composed("experiment=mine", "data=embedded_code")


def test_an_experiment_without_its_first_line_says_which(tmp_path, monkeypatch) -> None:
    experiment(tmp_path, monkeypatch, "seed: 7\n")
    with pytest.raises(ConfigError, match="put `# @package _global_` on the first line of experiments"):
        composed("experiment=mine", "data=embedded_code")


@pytest.mark.parametrize(
    "content", [b"# @package _global_\nseed: [1\n", b"# @package _global_\n\n- a: {{\n", b"\xff\xfe"]
)
def test_an_experiment_that_is_no_yaml_is_named(tmp_path, monkeypatch, content) -> None:
    experiment(tmp_path, monkeypatch, content)
    place = r"mine.yaml: " if content[0] == 0xFF else r"mine.yaml:\d: "
    with pytest.raises(ConfigError, match=place + r"isn't YAML \(.+\); mend the file\.$") as caught:
        names_data("mine")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="isn't YAML") as caught:
        composed("experiment=mine", "data=embedded_code")
    assert "\n" not in str(caught.value)


def test_a_mapping_in_the_place_of_the_sources_is_one_sentence(tmp_path, monkeypatch) -> None:
    text = "# @package _global_\ndefaults:\n  - override /data: mixture\ndata:\n  sources: {path: a.jsonl}\n"
    experiment(tmp_path, monkeypatch, text)
    with pytest.raises(ConfigError) as caught:
        composed("experiment=mine")
    assert caught.value.problems == [
        "experiments/mine.yaml: a mapping stands where a list belongs; data.sources is a list, whose entries begin "
        "with a dash: `- {path: a.jsonl, weight: 2}`."
    ]


def experiment(folder, monkeypatch, content) -> None:
    """Put an experiment `mine` into a working folder."""
    (folder / "experiments").mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "experiments" / "mine.yaml").write_bytes(content)
    monkeypatch.chdir(folder)


def test_several_values_without_multirun_say_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"seed=1,2: several values are a sweep; add -m"):
        composed("data=embedded_code", "++seed=1,2")


def test_a_value_outside_hydras_grammar_says_how_to_quote() -> None:
    with pytest.raises(ConfigError, match="Quote a value that holds special characters"):
        composed("data=embedded_code", "++tracking.experiment=a(b")


def test_a_target_in_a_config_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\._target_: a config can't name a class"):
        composed("data=embedded_code", "++model._target_=os.system")


def test_a_sweep_passes_all_jobs_in_one_call() -> None:
    seen = []

    def run_jobs(configs, overrides):
        seen.append([(config.method.name, config.seed) for config in configs])
        return [0, 1, 0, 1]

    composition = Composition(["--multirun"], ["data=embedded_code", "method=lora,full", "++seed=1,2"])
    assert compose(composition, run_jobs) == [0, 1, 0, 1]
    assert seen == [[("lora", 1), ("lora", 2), ("full", 1), ("full", 2)]]


def swept(*overrides):
    """For each job of a sweep its method, rank and overrides, but for the data's."""
    jobs = []

    def run_jobs(configs, typed):
        jobs.extend(
            (config.method.name, getattr(config.method, "rank", None), own[1:])
            for config, own in zip(configs, typed, strict=True)
        )
        return [0] * len(configs)

    compose(Composition(["--multirun"], ["data=embedded_code", *overrides]), run_jobs)
    return jobs


def test_a_sweep_with_a_wrong_job_starts_none() -> None:
    composition = Composition(["--multirun"], ["data=embedded_code", "method=lora,full", "++seed=-1,1,-2"])
    with pytest.raises(ConfigError) as raised:
        compose(composition, lambda configs, overrides: pytest.fail("a job was started"))
    assert tuple(raised.value.problems) == (
        "seed=-1: should be greater than or equal to 0. (job method=lora seed=-1 and 1 more)",
        "seed=-2: should be greater than or equal to 0. (job method=lora seed=-2 and 1 more)",
    )


def test_what_is_wrong_with_all_jobs_is_said_once() -> None:
    composition = Composition(["--multirun"], ["data=embedded_code", "method=lora,full", "++seed=-1"])
    with pytest.raises(ConfigError) as raised:
        compose(composition, lambda configs, overrides: pytest.fail("a job was started"))
    assert tuple(raised.value.problems) == ("seed=-1: should be greater than or equal to 0.",)


@pytest.mark.parametrize(
    "words", [["method=lora,full", "++method.rank=4,8"], ["++method.rank=4,8", "method=lora,full"]]
)
def test_an_axis_is_left_out_for_a_method_that_lacks_it(words, capsys) -> None:
    jobs = swept(*words)
    assert sorted((method, rank) for method, rank, _ in jobs if rank) == [("lora", 4), ("lora", 8)]
    assert [typed for method, _, typed in jobs if method == "full"] == [["method=full"]] * 2
    said = "llmtune: method.rank is left out for method=full, which has no such key\n"
    assert capsys.readouterr().err == said


def test_so_is_a_constant_and_the_key_of_a_file(tmp_path, monkeypatch, capsys) -> None:
    assert [rank for _, rank, _ in swept("method=lora,full", "++method.rank=4")] == [4, None]
    assert [rank for _, rank, _ in swept("method=lora", "++method.rank=4")] == [4]
    content = "# @package _global_\nmethod: {rank: 3}\nhydra: {sweeper: {params: {method: 'lora,full'}}}\n"
    experiment(tmp_path, monkeypatch, content)
    assert [rank for _, rank, _ in swept("experiment=mine")] == [3, None]
    assert [rank for _, rank, _ in swept("experiment=mine", "++method.rank=4,8")] == [4, 8, None, None]
    assert capsys.readouterr().err.count("method.rank is left out for method=full") == 3


def test_the_axes_of_a_file_count_as_typed_ones_do(tmp_path, monkeypatch) -> None:
    params = "{method: 'lora,full', method.rank: '4,8'}"
    experiment(tmp_path, monkeypatch, f"# @package _global_\nhydra: {{sweeper: {{params: {params}}}}}\n")
    assert [rank for _, rank, _ in swept("experiment=mine")] == [4, 8, None, None]
    assert [rank for _, rank, _ in swept("experiment=mine", "++method.rank=5")] == [5, None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=full", "++seed=1,2", "++method.rank=8"], "method.rank: method=full has no such key. It has: name"),
        (["method=lora,full", "++method.rnak=4,8"], "method.rnak: there is no such key. Did you mean method.rank"),
        (["method=lora,full", "++method.quant_type=nf4"], "method.quant_type: method=lora has no such key"),
    ],
)
def test_a_key_that_no_job_has_is_refused(words, message) -> None:
    with pytest.raises(ConfigError, match=message):
        swept(*words)


def test_keys_of_data_are_left_out_too(capsys) -> None:
    sources = []
    composition = Composition(["--multirun"], ["data=embedded_code,files", "++data.path=x.jsonl"])
    compose(composition, lambda configs, _: sources.extend(config.data.source for config in configs) or [0, 0])
    assert sources == ["embedded", "files"]
    assert "data.path is left out for data=embedded, which has no such key" in capsys.readouterr().err


def test_a_saved_config_reads_back_equal_and_takes_overrides(tmp_path) -> None:
    config = composed(
        "data=embedded_code", "method=full", "++generate.prompt='${oc.env:HOME} 7e12'".replace("$", "\\$")
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    saved = load_plain(tmp_path / "config.yaml")
    assert composed(saved=saved) == config
    changed = composed("method=lora", "++evaluate.num_samples=1", saved=saved)
    assert (changed.method.name, changed.evaluate.num_samples) == ("lora", 1)
    assert changed.generate.prompt == "${oc.env:HOME} 7e12"


def test_a_missing_or_empty_config_file_is_named(tmp_path) -> None:
    with pytest.raises(RunError, match="is missing"):
        load_plain(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(RunError, match="holds no config"):
        load_plain(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("content", "line"), [(b"seed: 1\ndata: {{\n", r":\d"), (b"seed: \xff\xfe\n", ""), (b"a: \x00", "")]
)
def test_a_damaged_config_file_is_named(tmp_path, content, line) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(RunError, match=rf"config\.yaml{line}: isn't YAML \(.+\); mend the file\.$") as caught:
        load_plain(file)
    assert "\n" not in str(caught.value)


def test_a_config_files_wrong_content_is_said_with_the_file(tmp_path) -> None:
    file = tmp_path / "config.yaml"
    save_config(composed("data=embedded_code"), file)
    file.write_text(yaml.safe_dump({**load_plain(file), "method": 3, "seed": "x"}))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(caught.value.problems) == 2
    assert all(problem.startswith(f"{file}: ") for problem in caught.value.problems)


def test_files_of_the_working_folder_are_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text("name: mine\nsource: hub\nid: me/mine\n")
    monkeypatch.chdir(tmp_path)
    config = composed("experiment=mine", "model=mine", "data=embedded_code")
    assert (config.seed, config.model.id) == (7, "me/mine")
