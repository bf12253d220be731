import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml

from medlt import config
from medlt.config import catalogue
from medlt.diffusion.schedulers import NAMES
from medlt.types import InputError

LEAST = """
out: {out}
data: {{kind: csv, table: labels.csv, findings: [Mass]}}
codec: {{kind: folder, path: codec}}
"""


@pytest.fixture
def least(tmp_path: Path) -> Path:
    path = tmp_path / "least.yaml"
    path.write_text(LEAST.format(out=tmp_path / "run"))
    return path


def test_the_resolved_config_reads_back_equal(least: Path, tmp_path: Path) -> None:
    first = config.load(least, ["sparse.groups=4", "method.renoise=false"])
    (tmp_path / "again.yaml").write_text(config.dump(first))
    assert config.load(tmp_path / "again.yaml") == first
    assert first.sparse.groups == 4
    assert first.method.renoise is False


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sparse.gruops=4", "sparse.gruops is not a known key"),
        ("sparse.groups=none", "sparse.groups"),
        ("seed", "has no '='"),
        ("seed.deep=1", "not a section"),
        ("checks.quantile=2", "less than 1"),
        ("data.kind=dicoms", "data"),
    ],
)
def test_a_mistake_is_one_clear_line(least: Path, override: str, said: str) -> None:
    overrides = ["seed=1", override]
    with pytest.raises(InputError, match=said.replace(".", r"\.")) as told:
        config.load(least, overrides)
    assert "\n" not in str(told.value)


def test_a_missing_file_and_an_empty_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        config.load(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="holds no settings"):
        config.load(tmp_path / "empty.yaml")
    for text in ("a: [", "[" * 20_000):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match="not readable as YAML"):
            config.load(tmp_path / "bad.yaml")


def test_variables_are_read_from_the_environment(least: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least.write_text(least.read_text().replace("labels.csv", "${PLACE_OF_DATA}/labels.csv"))
    monkeypatch.delenv("PLACE_OF_DATA", raising=False)
    with pytest.raises(InputError, match="PLACE_OF_DATA is not set"):
        config.load(least)
    monkeypatch.setenv("PLACE_OF_DATA", "here")
    assert config.load(least).data.table == Path("here/labels.csv")  # type: ignore[union-attr]
    least.write_text(least.read_text().replace("PLACE_OF_DATA", "PLACE_OF_NOTHING:-there"))
    assert config.load(least).data.table == Path("there/labels.csv")  # type: ignore[union-attr]


SHIPPED = catalogue.names()


def is_experiment(name: str) -> bool:
    return catalogue.recipe(name) == "verdict"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_valid_and_opens_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLT_DATA", "/data")
    path = catalogue.path(name)
    if is_experiment(name):
        for source in config.load_verdict(path).sources.values():
            assert source.config is not None
            config.load(source.config, source.set)
    else:
        assert config.load(path).recipe in get_args(config.RunConfig.model_fields["recipe"].annotation)
    head = path.read_text().split("\nrecipe:")[0]
    assert all(line.startswith("#") and len(line) <= 120 for line in head.splitlines())
    assert f"medlt config copy {name}" in head
    assert "minutes" in head or "not measured" in head
    told = re.findall(r"medlt (?:run|augment|evaluate|train denoiser) (\S+)", head)
    assert f"{path.stem}.yaml" in told or "benchmarks/" in head


def test_no_shipped_config_defaults_to_a_place_of_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data comes from a variable without a default, or from below the folder that one works in."""
    monkeypatch.delenv("MEDLT_DATA", raising=False)
    named = 0
    for name in SHIPPED:
        body = catalogue.path(name).read_text().split("\nrecipe:")[1]
        assert ":-" not in body
        assert not re.search(r"(?:[ :=]|path: )(?:/|~|\.\./)", body), name
        if "${" in body and not is_experiment(name):
            named += 1
            with pytest.raises(InputError, match=r"the variable MEDLT_DATA is not set; export MEDLT_DATA=\.\.\. first"):
                config.load(Path(name))
    assert named > 5


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_fits_the_schema_that_editors_get(name: str) -> None:
    tree = yaml.safe_load(catalogue.path(name).read_text())
    schema = config.schema("verdict" if is_experiment(name) else "run")
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(tree, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree | {"sede": 1}, schema)
    for section in ("targets", "classifier"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(tree | {section: {"sizze": 1}}, schema)


def test_a_shipped_config_is_found_by_its_name_where_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load(Path("phantom/fusion")).output_dir == Path("runs/phantom_fusion")
    sources = config.load_verdict(Path("phantom/verdict")).sources
    assert sources["edit"].config == catalogue.path("phantom/edit").absolute()
    (tmp_path / "phantom").mkdir()
    least.rename("phantom/fusion")  # the user's own file comes first
    assert config.load(Path("phantom/fusion")).output_dir == tmp_path / "run"
    with pytest.raises(InputError, match=r"phantom/fusoin: no such config file; `medlt config list` names those"):
        config.load(Path("phantom/fusoin"))


def test_a_copy_takes_its_sources_along_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLT_DATA", "/data")
    made = catalogue.copy("nih14/fresh_verdict", tmp_path / "mine")
    assert [path.name for path in made] == ["fresh_verdict.yaml", "unguided.yaml", "fusion.yaml", "edit.yaml"]
    for source in config.load_verdict(made[0]).sources.values():
        assert source.config is not None
        assert source.config.parent == tmp_path / "mine"
    own = tmp_path / "mine/fusion.yaml"
    assert catalogue.copy("nih14/small_verdict", tmp_path / "mine") == [tmp_path / "mine/small_verdict.yaml"]
    own.write_text("changed")
    before = {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    for name, said in (("nih14/verdict", "fusion"), ("nih14/fresh_verdict", "fresh_verdict"), ("nih14/edit", "edit")):
        with pytest.raises(InputError, match=rf"/{said}\.yaml: is there already"):
            catalogue.copy(name, tmp_path / "mine")
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    assert catalogue.copy("nih14/edit", tmp_path / "new/own.yaml") == [tmp_path / "new/own.yaml"]


@pytest.mark.parametrize("name", ["nih14/fusoin", "../nih14/fusion", "nih14", "", "fusion", "demo/demo.yaml"])
def test_a_name_that_is_none_is_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config that ships with medlt.*`medlt config list` shows all"):
        catalogue.copy(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_configs_need_no_torch() -> None:
    said = "import sys, medlt.config, medlt.config.catalogue; print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True, timeout=120)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("told", "words"),
    [(["method.scheduler=ddmi"], "'ddim'"), (["method.steps=4", "method.keep=5"], "keep 5 is more than the 4 steps")],
)
def test_a_misspelt_scheduler_and_too_many_kept_steps_stop_at_the_door(
    least: Path, told: list[str], words: str
) -> None:
    """Both used to fail only after everything was trained."""
    with pytest.raises(InputError, match=words):
        config.load(least, told)


def test_the_config_knows_every_scheduler_there_is() -> None:
    assert get_args(config.Fusion.model_fields["scheduler"].annotation) == NAMES


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe=finetune method.kind=fusion", "recipe finetune has method noise, not fusion"),
        ("method.kind=noise", "recipe fusion has method fusion, not noise"),
        ("recipe=finetune method=3", "method"),
        ("recipe=[finetune]", "recipe"),
        ("denoiser.kind=gan", "'gan' found using kind"),
        ("denoiser.width=9", "multiple of 8"),
        ("denoiser.steps=0", "greater than or equal to 1"),
        ("denoiser={kind: stable-diffusion}", "model: Field required"),
        ("denoiser={kind: stable-diffusion, model: {kind: folder, path: m}, rank: 0}", "rank"),
    ],
)
def test_a_recipe_its_method_and_its_denoiser_fit(least: Path, override: str, said: str) -> None:
    parts = override.split(" ") if override.startswith(("recipe", "method")) else [override]
    with pytest.raises(InputError, match=said) as told:
        config.load(least, parts)
    assert "\n" not in str(told.value)


def test_a_recipe_brings_its_own_method_and_a_denoiser_without_kind_is_the_unet(least: Path) -> None:
    made = config.load(least, ["recipe=finetune", "method.steps=7", "denoiser.width=16"])
    assert (made.method.kind, made.method.steps) == ("noise", 7)
    assert (made.denoiser.kind, made.denoiser.width) == ("unet", 16)
    assert config.parse({**made.model_dump(mode="json")}) == made


@pytest.mark.parametrize("override", ["method.guidance=.inf", "denoiser.learning_rate=.inf", "checks.quantile=.nan"])
def test_a_number_that_is_none_stops_at_the_door(least: Path, override: str) -> None:
    with pytest.raises(InputError, match="finite number"):
        config.load(least, [override])


EXPERIMENT = """
recipe: verdict
out: runs/x
data: {kind: phantom}
sources:
  fusion: {config: own.yaml, set: [threads=1]}
  made: {run: runs/edit}
arms:
  real:
  focal: {loss: focal}
  fusion: {source: fusion, dose: 0.5, training_strategy: pretrain}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    (tmp_path / "own.yaml").write_text("")
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT)
    return path


def test_an_experiment_is_read_and_written_back(experiment: Path) -> None:
    first = config.load_verdict(experiment, ["evaluation.seeds=5", "evaluation.workers=2"])
    assert (first.evaluation.seeds, first.evaluation.workers) == (5, 2)
    assert first.arms["real"] == config.ArmConfig()
    assert first.sources["fusion"].config == experiment.parent / "own.yaml"
    assert first.sources["made"].run == Path("runs/edit")
    experiment.write_text(config.dump(first))
    assert config.load_verdict(experiment) == first


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("arms.fusion.source=fusoin", "no source named 'fusoin'"),
        ("arms.focal.dose=2", "dose is about added images"),
        ("arms.focal.training_strategy=pretrain", "pretrain is about added images"),
        ("arms.fusion.training_strategy=crt", "crt re-balances real rows"),
        ("arms.real.loss=focal", "arms.real is the classifier as it is"),
        ("evaluation.chosen=focal", "'focal' is no arm with synthetic images"),
        ("sources.made.config=a.yaml", "either run, a finished folder, or config"),
        ("sources.made.set=[seed=1]", "set changes a config"),
        ("arms.fusion.dose=0", "greater than 0"),
        ("arms.fusion.loss=foacl", "'focal'"),
        ("evaluation.workers=0", "greater than or equal to 1"),
        ("workers=2", "workers is not a known key"),
        ("sources.fusion.config=gone.yaml", "gone.yaml is not there; name it relative to this file"),
        ("arms.focal.sauce=fusion", "not a known key"),
        ("arms={}", "nothing to compare with `real`"),
        ("arms={real: }", "nothing to compare with `real`"),
        ("classifier.training_strategy=pretrain", "`real` has none"),
        ('arms={"a\\nb": {loss: focal}}', "is no name"),
        ('sources={"a\\nb": {run: x}}', "sources: 'a"),
        ("arms={duplicated for fusion: {loss: focal}}", "control's name"),
    ],
)
def test_what_does_not_go_together_in_an_experiment_is_told(experiment: Path, override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        config.load_verdict(experiment, [override])


def test_the_classifiers_course_is_held_against_arms_with_a_source(experiment: Path) -> None:
    config.load_verdict(experiment, ["classifier.training_strategy=crt"])  # its arm has a training_strategy of its own
    with pytest.raises(InputError, match=r"arms\.plain: classifier\.training_strategy crt re-balances real rows"):
        config.load_verdict(experiment, ["classifier.training_strategy=crt", "arms.plain.source=fusion"])


def test_a_row_that_is_there_twice_is_told_in_place_of_lost(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT + "  focal: {loss: plain}\n")
    with pytest.raises(InputError, match=r"'focal' is there twice, again in line 12"):
        config.load_verdict(experiment)


def test_recipes_and_experiments_are_told_apart(experiment: Path, least: Path) -> None:
    with pytest.raises(InputError, match="medlt evaluate"):
        config.load(experiment)
    with pytest.raises(InputError, match="medlt run"):
        config.load_verdict(least)


def test_a_source_is_found_from_the_file_wherever_one_works(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the source's name in the working folder was taken before."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("own.yaml").write_text("another")
    found = config.load_verdict(Path("../experiment.yaml")).sources["fusion"].config
    assert found is not None
    assert found.is_absolute()
    assert found.resolve() == tmp_path / "own.yaml"
    (tmp_path / "own.yaml").unlink()
    with pytest.raises(InputError, match="is not there"):
        config.load_verdict(experiment)


def test_recipes_and_experiments_share_the_section_of_the_comparison(least: Path, experiment: Path) -> None:
    given = [f"evaluation.{name}" for name in ("seeds=4", "mix=0.5", "weight=0.7", "draws=300", "workers=3")]
    one, other = config.load(least, given).evaluation, config.load_verdict(experiment, given).evaluation
    assert one == other == config.EvaluationConfig(seeds=4, synthetic_fraction=0.5, weight=0.7, draws=300, workers=3)
    with pytest.raises(InputError, match="one arm of a recipe has synthetic images"):
        config.load(least, ["evaluation.chosen=fusion"])
