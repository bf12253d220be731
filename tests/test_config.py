import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

from medlt import config
from medlt.config import catalogue
from medlt.diffusion.schedulers import NAMES
from medlt.plugins import METHODS
from medlt.types import InputError

LEAST = """
output_dir: {out}
data: {{kind: csv, table: labels.csv, findings: [Mass]}}
codec: {{kind: folder, path: codec}}
"""


@pytest.fixture
def least(tmp_path: Path) -> Path:
    path = tmp_path / "least.yaml"
    path.write_text(LEAST.format(out=tmp_path / "run"))
    return path


PRIVATE = "privacy={epsilon: 3, delta: 1.0e-5, patients: 9, findings: [Mass]}"


def test_the_resolved_config_reads_back_equal(least: Path, tmp_path: Path) -> None:
    first = config.load_config(least, ["sparse.groups=4", "method.renoise=false"])
    (tmp_path / "again.yaml").write_text(config.dump(first))
    assert config.load_config(tmp_path / "again.yaml") == first
    assert first.sparse.groups == 4
    assert first.method.renoise is False


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparse.gruops=4", "sparse.gruops is not a known key; did you mean 'groups'?"),
        ("groups=4", "groups is not a known key; did you mean sparse.groups?"),
        ("method.steps=4", "method.steps is not a known key; method has kind, pairing, neighbours"),
        ("sparse.groups=none", "sparse.groups: must be a whole number, not 'none'"),
        ("seed", "override 'seed' has no '='; write it as section.key=value"),
        ("seed.deep=1", "override 'seed.deep=1': seed is not a section"),
        ("seed=1.5", "seed: must be a whole number, not 1.5"),
        ("checks.verifier_quantile=2", "checks.verifier_quantile: must be less than 1, not 2"),
        ("checks.near_copi={}", "checks.near_copi is not a known key; did you mean 'near_copy'?"),
        ("checks.near_copy={fp: 1}", "checks.near_copy.fp is not a known key; did you mean 'fpr'?"),
        ("data.kind=dicoms", "data.kind: 'dicoms' is not valid; choose one of csv, nih, manifest, phantom"),
        ("data={}", "data.kind is missing; add it to the section"),
        ("data.findings=Mass", "data.findings: must be a list, such as [A, B], not 'Mass'"),
        ("data.table=4", "data.table: must be a path, not 4"),
        ("method=fusoin", "method: no method is named 'fusoin'; did you mean 'fusion'? choose one of fusion"),
        ("method.scheduler=unpic", "method.scheduler: 'unpic' is not valid; did you mean 'unipc'? choose one of ddim"),
        ("method=3", "method: must be a section with a kind; choose one of fusion"),
        ("codec={path: x}", "codec: kind is missing; choose one of folder, identity, train"),
        ("codec.kind=foldr", "codec: no codec is named 'foldr'; did you mean 'folder'?"),
        ("compile=fast", "compile: must be true or false or measure, not 'fast'"),
        ("method={kind: minority, guidance: [{kind: minority, wieght: 2}]}",
         "method.guidance[0].wieght is not a known key; did you mean 'weight'?"),
        ("method={kind: minority, guidance: [{kind: minorty}]}",
         "method.guidance[0].kind: 'minorty' is not valid; did you mean 'minority'?"),
        ("method={kind: edit, strength: [2]}", "method.strength[0]: must be at most 1, not 2"),
        ("privacy={epsilon: 3, patients: 9, findings: [Mass]}", "privacy.delta is missing; add it to the config"),
        ("privacy={epsilon: 3, findings: [Mass]}", "privacy: patients must not be taken from the patients"),
        ("privacy={epsilon: 3, delta: 1.0e-5, patients: 9}", "write privacy.findings: [A, B, ...], all findings"),
        ("privacy={epsilon: 3, delta: 0.1, patients: 9, findings: [A], grad_sample_mode: gost}", "mean 'ghost'"),
        ("denoiser={prediction: epsilon}", "denoiser: prediction epsilon cannot start from pure noise; write"),
        ("denoiser={attributes: [sex, sex]}", "denoiser: attributes: sex, sex names one twice; name each once"),
        ("denoiser={attributes: [race]}", "denoiser.attributes[0]: 'race' is not valid; choose one of view, sex, age"),
        ("ablation={vary: {data.x: [1]}}", "ablation.vary: data.x cannot be varied"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(least: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        config.load_config(least, ["seed=1", override])
    assert "\n" not in str(error.value)
    assert not PYDANTIC.search(str(error.value))


PYDANTIC = re.compile(
    r"[Ii]nput should|_error|union_tag|extra_forbidden|tagged|discriminator|literal\[|Field required|pydantic|"
    r"Extra inputs|_parsing|Value error"
)
"""Words of pydantic's messages."""


def wrong_values(node: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a section with values that it cannot have."""
    for key in node:
        yield from ((key, value) for value in ("wrong", -7, 10**9, [], [None], {"a": 1}, None, True, float("inf")))


def test_no_message_has_words_of_pydantic(least: Path) -> None:
    """Every key of every section is given values that it cannot have; each refusal names it."""
    base = config.load_config(
        least,
        [PRIVATE, "checks={in_band: {}, near_copy: {}}"],
    )
    tree = base.model_dump(mode="json")
    trees = [("", tree)] + [(name, part) for name, part in tree.items() if isinstance(part, dict)]
    trees += [("method", {"kind": name}) for name in METHODS]
    trees += [("denoiser", {"kind": "stable-diffusion", "model": {"kind": "untrained"}})]
    refused = 0
    for section, part in trees:
        for key, value in wrong_values(part):
            new = {**part, key: value}
            try:
                config.parse({**tree, section: new} if section else new)
            except InputError as error:
                refused += 1
                text = str(error)
                assert key in text or section in text, (section, key, value, text)
                assert not PYDANTIC.search(text), text
                assert "\n" not in text
    assert refused > 600


def test_a_missing_file_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        config.load_config(tmp_path / "no.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(InputError, match="holds no settings"):
        config.load_config(tmp_path / "empty.yaml")
    for text in ("a: [", "[" * 20_000):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match="not readable as YAML"):
            config.load_config(tmp_path / "bad.yaml")


def test_variables_are_read_from_the_environment(least: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least.write_text(
        "# ${NOT_SET_EITHER} in a comment\n" + least.read_text().replace("labels.csv", "${PLACE_OF_DATA}/l.csv")
    )
    monkeypatch.delenv("PLACE_OF_DATA", raising=False)
    with pytest.raises(InputError, match="PLACE_OF_DATA is not set"):
        config.load_config(least)
    monkeypatch.setenv("PLACE_OF_DATA", "here")
    assert table_of(config.load_config(least)) == least.parent / "here/l.csv"
    least.write_text(least.read_text().replace("PLACE_OF_DATA", "PLACE_OF_NOTHING:-there"))
    assert table_of(config.load_config(least)) == least.parent / "there/l.csv"


def table_of(settings: config.RunConfig) -> Path:
    assert isinstance(settings.data, config.CsvData)
    return settings.data.table


def test_paths_start_at_the_file_and_those_of_the_command_line_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work, tmp_path / "study"):
        folder.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    file = tmp_path / "study/own.yaml"
    file.write_text(LEAST.format(out="runs/a").replace("path: codec", "path: ~/codec"))
    settings = config.load_config(Path("../study/own.yaml"))
    assert settings.output_dir.resolve() == tmp_path / "study/runs/a"
    assert settings.output_dir.is_absolute()
    assert table_of(settings).resolve() == tmp_path / "study/labels.csv"
    assert isinstance(settings.codec, config.FolderCodec)
    assert settings.codec.path == home / "codec"
    typed = config.load_config(file, ["output_dir=runs/b", "data.table=other.csv", "codec={kind: folder, path: mine}"])
    assert typed.output_dir == work / "runs/b"
    assert table_of(typed) == work / "other.csv"
    assert isinstance(typed.codec, config.FolderCodec)
    assert typed.codec.path == work / "mine"
    assert config.parse(yaml.safe_load(file.read_text())).output_dir == work / "runs/a"
    (work / "config.yaml").write_text(config.dump(settings))
    assert config.load_config(Path("config.yaml")) == settings


def test_the_config_in_a_run_folder_moves_with_it(least: Path, tmp_path: Path) -> None:
    settings = config.load_config(least, [f"artifacts_dir={tmp_path / 'run/own'}"])
    settings.output_dir.mkdir()
    (settings.output_dir / "config.yaml").write_text(config.dump(settings, settings.output_dir))
    assert config.load_config(settings.output_dir / "config.yaml") == settings
    settings.output_dir.rename(tmp_path / "moved")
    moved = config.load_config(tmp_path / "moved/config.yaml")
    assert (moved.output_dir, moved.artifacts_dir) == (tmp_path / "moved", tmp_path / "moved/own")
    assert table_of(moved) == table_of(settings)


def test_a_missing_path_is_shown_absolute(least: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medlt.data.source import open_data

    monkeypatch.chdir(least.parent)
    settings = config.load_config(Path("least.yaml"))
    with pytest.raises(InputError, match=re.escape(str(least.parent / "labels.csv"))):
        open_data(settings.data, seed=0, folder=Path())
    with pytest.raises(InputError, match=re.escape(str(least.parent / "lest.yaml"))):
        config.load_config(Path("lest.yaml"))


SHIPPED = catalogue.names()


def is_experiment(name: str) -> bool:
    return catalogue.kind(name) == "experiment"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_valid_and_opens_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLT_DATA", "/data")
    path = catalogue.path(name)
    if is_experiment(name):
        for source in config.load_verdict(path).sources.values():
            if source.config is not None:
                config.load_config(source.config, source.set)
            else:
                assert source.run or source.codec_of or source.drawn
    else:
        assert config.load_config(path).method.kind in METHODS
    head = head_of(path)
    assert all(line.startswith("#") and len(line) <= 120 for line in head.splitlines())
    assert f"medlt config copy {name}" in head
    assert "minutes" in head or "not measured" in head
    files = re.findall(r"medlt (?:run|augment|evaluate|train denoiser) (\S+)", head)
    assert f"{path.stem}.yaml" in files or "benchmarks/" in head


def head_of(path: Path) -> str:
    """The comment that a config opens with."""
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def test_no_shipped_config_defaults_to_a_place_of_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data comes from a variable without a default, or from below the folder that one works in."""
    monkeypatch.delenv("MEDLT_DATA", raising=False)
    named = 0
    for name in SHIPPED:
        path = catalogue.path(name)
        body = path.read_text().removeprefix(head_of(path))
        assert ":-" not in body
        assert not re.search(r"(?:[ :=]|path: )(?:/|~|\.\./)", body), name
        if "${" in body and not is_experiment(name):
            named += 1
            with pytest.raises(InputError, match=r"the variable MEDLT_DATA is not set; export MEDLT_DATA=\.\.\. first"):
                config.load_config(Path(name))
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


def test_a_name_means_a_shipped_config_where_no_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.load_config(Path("phantom/fusion")).output_dir == tmp_path / "runs/phantom_fusion"
    sources = config.load_verdict(Path("phantom/verdict")).sources
    assert sources["edit"].config == catalogue.path("phantom/edit").absolute()
    (tmp_path / "phantom").mkdir()
    least.rename("phantom/fusion")  # the user's own file comes first
    assert config.load_config(Path("phantom/fusion")).output_dir == tmp_path / "run"
    with pytest.raises(InputError, match=r"phantom/fusoin: no such config file; did you mean 'phantom/fusion'\?"):
        config.load_config(Path("phantom/fusoin"))


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
    for name, file in (("nih14/verdict", "fusion"), ("nih14/fresh_verdict", "fresh_verdict"), ("nih14/edit", "edit")):
        with pytest.raises(InputError, match=rf"/{file}\.yaml: exists already"):
            catalogue.copy(name, tmp_path / "mine")
    assert {path: path.read_bytes() for path in (tmp_path / "mine").iterdir()} == before
    assert catalogue.copy("nih14/edit", tmp_path / "new/own.yaml") == [tmp_path / "new/own.yaml"]


@pytest.mark.parametrize("name", ["nih14/fusoin", "../nih14/fusion", "nih14", "", "fusion", "demo/demo.yaml"])
def test_an_unknown_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config that ships with medlt.*`medlt config list` shows all"):
        catalogue.copy(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_configs_need_no_torch() -> None:
    code = "import sys, medlt.config, medlt.config.catalogue; print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert printed.stdout.strip() == "set()"


def test_the_config_knows_every_scheduler_there_is() -> None:
    assert get_args(config.Fusion.model_fields["scheduler"].annotation) == NAMES


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("denoiser.kind=gan", "denoiser.kind: 'gan' is not valid; choose one of unet, transformer, stable-diffusion"),
        ("denoiser.width=9", "denoiser.width: must be a multiple of 8, not 9"),
        ("denoiser.steps=0", "denoiser.steps: must be at least 1, not 0"),
        ("denoiser={kind: stable-diffusion}", "denoiser.model is missing; add it to the config"),
        (
            "denoiser={kind: stable-diffusion, model: {kind: folder, path: m}, rank: 0}",
            "denoiser.rank: must be at least",
        ),
        ("method={kind: noise, num_inference_steps: 4, skip_steps: 5}", "method: skip_steps 5 leaves none of 4 steps"),
        ("ablation={vary: {sparse.groups: [4]}} method=edit", "ablation varies method fusion, not edit"),
        ("evaluation.primary_arm=fusion", "evaluation.primary_arm is for `medlt evaluate`"),
        (
            PRIVATE + " method=diffult",
            "privacy: method diffult does not declare that private",
        ),
    ],
)
def test_a_method_and_a_denoiser_fit_the_rest(least: Path, override: str, message: str) -> None:
    *first, last = override.split(" ") if override.endswith(("edit", "diffult")) else [override]
    with pytest.raises(InputError, match=re.escape(message)) as error:
        config.load_config(least, [" ".join(first), last] if first else [last])
    assert "\n" not in str(error.value)


def test_a_method_has_settings_of_its_own_and_a_denoiser_without_kind_is_the_unet(least: Path) -> None:
    made = config.load_config(least, ["method=noise", "method.num_inference_steps=7", "denoiser.width=16"])
    assert isinstance(made.method, config.FromNoiseConfig)
    assert (made.method.kind, made.method.num_inference_steps) == ("noise", 7)
    assert isinstance(made.denoiser, config.UNetConfig)
    assert (made.denoiser.kind, made.denoiser.width) == ("unet", 16)
    assert config.parse({**made.model_dump(mode="json")}) == made


def test_a_method_turns_on_its_checks(least: Path) -> None:
    assert config.load_config(least).checks.optional == {}
    assert set(config.load_config(least, method="diffult").checks.optional) == {"in_band", "near_copy"}
    assert set(config.load_config(least, method="minority").checks.optional) == {"near_copy"}
    assert config.load_config(least, ["checks.near_copy=null"], method="noise").checks.optional == {}
    assert config.load_config(least, [PRIVATE], method="noise").checks.optional == {}


@pytest.mark.parametrize(
    "override", ["method.guidance_scale=.inf", "denoiser.learning_rate=.inf", "checks.verifier_quantile=.nan"]
)
def test_an_infinite_number_is_refused(least: Path, override: str) -> None:
    with pytest.raises(InputError, match="must be a finite number"):
        config.load_config(least, [override])


def test_every_key_is_described() -> None:
    """The page "Every setting" and the hints of editors are made of these."""
    for kind in ("run", "verdict"):
        schema = config.schema(kind)  # type: ignore[arg-type]
        sections = {"": schema, **schema["$defs"]}
        fields = {f"{name}.{key}": field for name, section in sections.items()
                  for key, field in section.get("properties", {}).items()}  # fmt: skip
        bare = [name for name, field in fields.items() if len(field.get("description", "")) < 4]
        assert bare == []
        assert [name for name, section in sections.items() if not section.get("description")] == []


def test_the_schema_has_a_section_of_each_method_and_check() -> None:
    schema = config.schema()
    names = next(one["enum"] for one in schema["properties"]["method"]["anyOf"] if "enum" in one)
    assert names == list(METHODS)
    assert {"in_band", "near_copy"} <= set(schema["$defs"]["Checks"]["properties"])


EXPERIMENT = """
output_dir: runs/x
data: {kind: phantom}
sources:
  fusion: {config: own.yaml, set: [threads=1]}
  made: {run: runs/edit}
arms:
  real:
  focal: {loss: focal}
  fusion: {source: fusion, synthetic_ratio: 0.5, training_strategy: pretrain}
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
    assert first.sources["made"].run == experiment.parent / "runs/edit"
    assert first.output_dir == experiment.parent / "runs/x"
    experiment.write_text(config.dump(first))
    assert config.load_verdict(experiment) == first


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arms.fusion.source=fusoin", "no source is named 'fusoin'; did you mean 'fusion'?"),
        ("arms.focal.synthetic_ratio=2", "arms.focal: synthetic_ratio is about synthetic images"),
        ("arms.focal.keep_top=0.5", "keep_top is about synthetic images"),
        ("arms.focal.real_duplicates=true", "real_duplicates is about synthetic images"),
        ("arms.focal.training_strategy=pretrain", "pretrain is about synthetic images"),
        ("arms.fusion.training_strategy=crt", "crt re-balances real rows"),
        ("arms.real.loss=focal", "arms.real is the classifier unchanged"),
        ("evaluation.primary_arm=focal", "'focal' is no arm with synthetic images"),
        ("evaluation.primary_arm=fusio", "'fusio' is no arm with synthetic images; did you mean 'fusion'?"),
        ("sources.made.config=a.yaml", "sources.made: give one of run, a finished folder; config"),
        (
            "sources.coded={codec_of: mad}",
            "sources.coded.codec_of: 'mad' is no source with a run; did you mean 'made'?",
        ),
        ("sources.made.codec_of=fusion", "sources.made: give one of run"),
        ("evaluation.steps=0", "evaluation.steps: "),
        ("evaluation.steps=platau", "evaluation.steps: "),
        ("evaluation.synthetic_fraction=[0.1, 1.5]", "evaluation.synthetic_fraction"),
        ("sources.made.set=[seed=1]", "set changes a config"),
        ("arms.fusion.synthetic_ratio=0", "arms.fusion.synthetic_ratio: must be greater than 0, not 0"),
        ("arms.fusion.loss=foacl", "arms.fusion.loss: 'foacl' is not valid; did you mean 'focal'? choose one of"),
        ("evaluation.workers=0", "evaluation.workers: must be at least 1, not 0"),
        ("workers=2", "workers is not a known key; did you mean evaluation.workers?"),
        ("sources.fusion.config=gone.yaml", "gone.yaml does not exist; write it relative to this file"),
        ("arms.focal.sourse=fusion", "arms.focal.sourse is not a known key; did you mean 'source'?"),
        ("arms={}", "nothing to compare"),
        ("arms={real: }", "nothing to compare"),
        ("classifier.training_strategy=pretrain", "`real` has none"),
        ('arms={"a\\nb": {loss: focal}}', "cannot be a name"),
        ('sources={"a\\nb": {run: x}}', "sources: 'a"),
        ("arms={duplicated for fusion: {loss: focal}}", "is the name of a control"),
    ],
)
def test_settings_of_an_experiment_that_do_not_fit_are_refused(experiment: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as error:
        config.load_verdict(experiment, [override])
    assert not PYDANTIC.search(str(error.value))


def test_the_training_strategy_of_the_classifier_fits_arms_with_a_source(experiment: Path) -> None:
    config.load_verdict(experiment, ["classifier.training_strategy=crt"])  # its arm has a training_strategy of its own
    with pytest.raises(InputError, match=r"arms\.plain: classifier\.training_strategy crt re-balances real rows"):
        config.load_verdict(experiment, ["classifier.training_strategy=crt", "arms.plain.source=fusion"])


def test_a_row_given_twice_is_refused(experiment: Path) -> None:
    experiment.write_text(EXPERIMENT + "  focal: {loss: plain}\n")
    with pytest.raises(InputError, match=r"'focal' is given twice, again in line 11"):
        config.load_verdict(experiment)


def test_runs_and_experiments_are_kept_separate(experiment: Path, least: Path) -> None:
    with pytest.raises(InputError, match="medlt evaluate"):
        config.load_config(experiment)
    with pytest.raises(InputError, match="medlt run"):
        config.load_verdict(least)


def test_the_config_of_a_source_is_relative_to_the_file(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of the source's name in the working folder was taken before."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("own.yaml").write_text("another")
    file = config.load_verdict(Path("../experiment.yaml")).sources["fusion"].config
    assert file is not None
    assert file.is_absolute()
    assert file.resolve() == tmp_path / "own.yaml"
    (tmp_path / "own.yaml").unlink()
    with pytest.raises(InputError, match="does not exist"):
        config.load_verdict(experiment)


def test_runs_and_experiments_share_the_section_of_the_comparison(least: Path, experiment: Path) -> None:
    values = ("seeds=4", "synthetic_fraction=0.5", "synthetic_weight=0.7", "n_bootstrap=300", "workers=3")
    given = [f"evaluation.{value}" for value in values]
    one, other = config.load_config(least, given).evaluation, config.load_verdict(experiment, given).evaluation
    assert one == other
    assert one == config.EvaluationConfig(
        seeds=4, synthetic_fraction=0.5, synthetic_weight=0.7, n_bootstrap=300, workers=3
    )
