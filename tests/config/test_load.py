"""Recipes: what is read, what an override does, and the one message that tells all that is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from scaletrain.config.load import dump_recipe, load_recipe
from scaletrain.config.problems import closest, shown
from scaletrain.config.schema import Recipe
from scaletrain.config.strict_yaml import dump_yaml, parse_yaml
from scaletrain.errors import ConfigError

GOOD = """
run: {dir: runs/x}
data: {path: dataset}
model: {preset: llama-tiny}
train: {max_steps: 100}
"""
JSON = Path(__file__).parents[2] / "ds_configs" / "zero1.json"


def write(folder: Path, text: str = GOOD) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def fault(folder: Path, text: str = GOOD, *overrides: str) -> str:
    """The message of a recipe that must be refused, its file name cut off."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message.removeprefix(str(path)).lstrip(":").strip()


def test_a_recipe_and_its_overrides_are_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), ["optim.lr=3e-4", "--optim.betas=[0.9, 0.99]", "train.global_batch_size=1e3"])
    assert recipe.optim.lr == 3e-4
    assert recipe.optim.betas == (0.9, 0.99)
    assert recipe.train.global_batch_size == 1000
    assert recipe.train.max_steps == 100


def test_the_last_override_wins_and_null_unsets(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path), ["train.max_steps=5", "train.max_steps=null", "train.max_tokens=10M", "optim=", "seed=7"]
    )
    assert (recipe.train.max_steps, recipe.train.max_tokens, recipe.seed) == (None, 10_000_000, 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E6", 1e6),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1", -1),
        ("010", 10),
        ("100_000", 100_000),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("", None),
        ("10B", "10B"),
        ("e5", "e5"),
    ],
)
def test_plain_values_are_read_as_yaml_1_2(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value
    assert type(parse_yaml(text, "x")) is type(value)
    assert parse_yaml(dump_yaml({"key": value}), "x") == {"key": value}
    assert parse_yaml(dump_yaml({"key": text}), "x") == {"key": text}  # a string that looks like a value stays one


def test_anchors_and_merges_are_read() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, j: 2}", "x")["b"] == {"k": 1, "j": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "run: {dir: x}\ntrain:\n  max_steps: 1\n  max_steps: 2\n",
            ":4: the key max_steps is given twice (lines 3 and 4)",
        ),
        ("run: {dir: x\ntrain: 1\n", ":2: "),
        ("run: !!python/name:os.system\nseed: 1", ":1: could not determine a constructor"),
        ("1: x\n2: y", ":1: a key should be a name"),
        ("run: \0", ": unacceptable character"),
    ],
)
def test_a_fault_of_yaml_is_one_line_with_the_place(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}{line}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["train.max_step=100"], "train.max_step=100 is unknown: did you mean train.max_steps?"),
        (["train.lr=1"], "train.lr=1 is unknown: lr belongs to optim.lr"),
        (["lr=1"], "lr=1 is unknown: lr belongs to optim.lr"),
        (["train.seed=1"], "train.seed=1 is unknown: seed belongs to no section: write it at the top level"),
        (["data.warmup_step=1"], "data.warmup_step=1 is unknown: did you mean optim.warmup_steps?"),
        (
            ["log.zzz=1"],
            "log.zzz=1 is unknown: the keys of log are every_steps, tensorboard, trackers, tracker_project",
        ),
        (["zzz={a: 1}"], "zzz is unknown: the keys at the top level are run, seed"),
        (["optm.lr=1"], "optm is unknown: did you mean optim?"),
        (["every_steps=1"], "belongs to checkpoint.every_steps or evaluate.every_steps or log.every_steps"),
        (["train.precision=bf17"], "train.precision=bf17 is not one of bf16, fp16, fp32: did you mean bf16?"),
        (["train.precision=8"], "train.precision=8 is not one of bf16, fp16, fp32"),
        (["optim.lr=-1"], "optim.lr=-1 should be above 0"),
        (["optim.min_lr_ratio=2"], "optim.min_lr_ratio=2 should be at most 1"),
        (["optim.betas=[0.9, 1]"], "optim.betas[1]=1 should be below 1"),
        (["optim.betas=[0.9]"], "optim.betas=[0.9] should be a list of two numbers, such as [0.9, 0.95]"),
        (["optim.betas=[1, 2, 3]"], "should be a list of two numbers"),
        (["optim.betas=0.9"], "optim.betas=0.9 should be a list of two numbers"),
        (["optim.lr=fast"], "optim.lr=fast should be a number"),
        (["optim.lr=true"], "optim.lr=true should be a number"),
        (["optim.lr=null"], "optim.lr=null should be a number"),
        (["optim.lr=.inf"], "should be a finite number"),
        (["train.max_steps=0"], "train.max_steps=0 should be at least 1"),
        (["train.max_steps=1.5"], "train.max_steps=1.5 should be a whole number"),
        (
            ["train.max_steps=many"],
            "train.max_steps=many should be a whole number (100_000, 1e5, 10B and 2.5M are read",
        ),
        (["train.max_steps=[1]"], "train.max_steps=[1] should be a whole number"),
        (["data.shuffle=perhaps"], "data.shuffle=perhaps should be true or false"),
        (["data.shuffle=[1]"], "data.shuffle=[1] should be true or false"),
        (["run.dir=5"], "run.dir=5 should be text: put it in quotes"),
        (["run.dir=''"], 'run.dir="" should not be empty'),
        (["run.env=FAST"], "run.env=FAST should be a section"),
        (["run.env.FAST=true"], "run.env.FAST=true should be text: put it in quotes"),
        (["run.env={A B: x}"], "run.env.A B should be a variable's name"),
        (["run.env.LOCAL_RANK=1"], "run.env.LOCAL_RANK is the launcher's own: set it where you launch"),
        (["run.env.LD_PRELOAD=x"], "run.env.LD_PRELOAD is read before a recipe is: set it where you launch (deepspeed"),
        (["run.env.HF_TOKEN=x"], "run.env.HF_TOKEN looks like a secret, and the run folder keeps a copy of the recipe"),
        (["train.activation_checkpointing=some"], "should be none, selective, full, offload, auto or every_N"),
        (
            ["train.compile=blocks", "train.activation_checkpointing=selective"],
            "operations that the compiler joins: use",
        ),
        (
            ["train.sequence_parallel=3"],
            "is not a multiple of train.sequence_parallel=3: change one of them",
        ),
        (
            ["train.sequence_parallel=2", "train.compile=blocks"],
            "blocks that ranks exchange in cannot be compiled; set it to none",
        ),
        (
            ["train.sequence_parallel=2", "data.source=huggingface"],
            "with data.source=huggingface is not supported: prepare the text with `scaletrain prepare`",
        ),
        (["train=5"], "train=5 should be a section"),
        (["train.profile_steps=12-10"], "train.profile_steps=12-10 ends before it begins: write the lower step first"),
        (["train.profile_steps=ten"], "train.profile_steps=ten"),
        (["optim.lr"], "override 'optim.lr' is not section.key=value: write it like optim.lr=1e-4"),
        (["optim..lr=1"], "override 'optim..lr=1' is not section.key=value"),
        (["optim.betas=[1"], "override 'optim.betas=[1': "),
        (["deepspeed.stage=1"], "override 'deepspeed.stage=1': deepspeed is a value, not a section"),
        (["seed=3", "seed.x=1"], "override 'seed.x=1': seed is a value, not a section: it has no keys to set"),
        (["train.max_steps=null"], "train.max_steps and train.max_tokens are not set: give one"),
        (
            ["train.max_tokens=1M"],
            "train.max_steps=100 and train.max_tokens=1000000 both set the run's length: keep one",
        ),
        (["train.micro_batch_size=3"], "train.global_batch_size=8 is not a multiple of train.micro_batch_size=3"),
        (["optim.muon_momentum=0.9"], "optim.muon_momentum=0.9 has no effect with optim.name=adamw: remove it or set"),
        (["optim.muon_nesterov=false"], "optim.muon_nesterov=false has no effect with optim.name=adamw"),
        (["optim.muon_ns_steps=6"], "optim.muon_ns_steps=6 has no effect with optim.name=adamw"),
        (["optim.decay_ratio=0.5"], "optim.decay_ratio=0.5 has no effect with optim.schedule=cosine"),
        (["model.preset=llama-tny"], "model.preset=llama-tny is unknown: did you mean llama-tiny?"),
        (["model.preset=null"], "model.family is not set: give model.preset (gpt2-tiny"),
        (["model.num_heads=3"], "model.hidden_size=128 is not a multiple of model.num_heads=3"),
        (["model.init_from=folder"], "model.init_from=folder and model.preset=llama-tiny both name a model: keep one"),
        (["deepspeed=none.json"], "deepspeed=none.json is not a file in "),
        (["data.cache.max_gbs=3"], "data.cache.max_gbs=3 is unknown: did you mean data.cache.max_gb?"),
        (["data.live.stream=1"], "data.live.stream=1 is unknown: the keys of data.live are name, revision, split,"),
        (["data.mixture.a.weigth=1"], "data.mixture.a.weigth=1 is unknown: did you mean data.mixture.a.weight?"),
        (["data.mixture.a.weight=1"], "data.mixture.a.path is not set: add it to the recipe or the command line ("),
        (["data.mixture.a={path: x, weight: 1.0e+308}"], "data.mixture.a.weight=1e+308 should be at most 1e+06"),
        (["data.mixture=[a]"], 'data.mixture=["a"] should be a section: keys on lines of their own'),
        (["data.mixture.a=x"], "data.mixture.a=x should be a section: keys on lines of their own"),
        (["data.stages=[{from_token: 9, weights: {a: 1}}]"], "data.stages[0].from_token=9 is unknown: did you mean"),
        (["data.stages=[{weights: {a: 1}}]"], "data.stages[0].from_tokens is not set: add it there"),
        (["data.stages=[{from_tokens: 0, weights: {a: 1}}]"], "data.stages[0].from_tokens=0 should be at least 1"),
        (
            ["data.stages={from_tokens: 9, weights: {a: 1}}"],
            'data.stages={"from_tokens": 9, "weights": {"a": 1}} should be a list of sections, a dash before each, '
            "with the keys from_tokens, weights",
        ),
        (["data.stages=null"], "data.stages=null should be a list of sections, a dash before each, with the keys"),
        (["data.stages=[5]"], "data.stages[0]=5 should be a section"),
        (
            ["guard.on_spike=roll_back", "checkpoint.keep_last=1"],
            "guard.on_spike=roll_back with checkpoint.keep_last=1: the one checkpoint may be of the spike itself: set "
            "checkpoint.keep_last=2 or more",
        ),
    ],
)
def test_each_fault_names_value_rule_and_remedy(tmp_path: Path, overrides: list[str], line: str) -> None:
    message = fault(tmp_path, GOOD, *overrides)
    assert line in message
    assert "pydantic" not in message


def test_one_problem_is_one_line(tmp_path: Path) -> None:
    assert fault(tmp_path, GOOD, "train.max_step=100", "train.max_steps=null").count("\n") == 0


def test_all_problems_are_told_at_once_and_each_once(tmp_path: Path) -> None:
    text = "data: {path: x}\nmodel: {preset: llama-tiny}\ntrain: {max_step: 5, micro_batch_size: 3, precision: x}\n"
    first, *lines = fault(tmp_path, text, "bad", "optim.lr=0").split("\n")
    assert first == "6 problems"
    starts = [
        "override 'bad'",
        "train.max_step=5",
        "run.dir is not set",
        "train.precision=x",
        "optim.lr=0",
        "train.glob",
    ]
    assert [next(s for s in starts if line.strip().startswith(s)) for line in lines] == starts


def test_a_broken_key_does_not_bring_problems_of_its_default(tmp_path: Path) -> None:
    assert fault(tmp_path, GOOD, "train.max_steps=-5") == "train.max_steps=-5 should be at least 1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "a recipe is sections of keys, this file holds null"),
        ("- a\n- b\n", 'a recipe is sections of keys, this file holds ["a", "b"]'),
        ("run: {dir: x}\nmodel: {preset: llama-tiny}\ntrain: {max_steps: 1}\n", "data.path is not set: add it to the"),
    ],
)
def test_a_recipe_without_its_sections_is_refused(tmp_path: Path, text: str, line: str) -> None:
    assert line in fault(tmp_path, text)


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: the recipe cannot be read \(No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: \xe9}")
    with pytest.raises(ConfigError, match=r"latin\.yaml: the recipe cannot be read \(not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_a_dumped_recipe_loads_equal(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path), ["run.name='1e5'", "run.dir='007'", "optim.eps=1e-12"])
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    assert set(parse_yaml(dump_recipe(recipe), "x")) == set(Recipe.model_fields)


def test_a_recipe_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe(write(tmp_path)).seed = 2


def test_the_deepspeed_file_is_found_whatever_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(write(tmp_path)).deepspeed == str(JSON)  # from the source tree
    (tmp_path / "ds_configs").mkdir()
    beside = tmp_path / "ds_configs" / "zero1.json"
    beside.write_text("{}")
    (tmp_path / "a" / "b").mkdir(parents=True)
    recipe_path = write(tmp_path / "a" / "b")
    monkeypatch.chdir("/")
    assert load_recipe(recipe_path).deepspeed == str(beside)  # from a folder above the recipe
    own = tmp_path / "own.json"
    own.write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_recipe(recipe_path, deepspeed_config="own.json").deepspeed == str(own)
    with pytest.raises(ConfigError, match=r"deepspeed=/none\.json is not a file: give the path of a DeepSpeed JSON"):
        load_recipe(recipe_path, deepspeed_config="/none.json")


def test_a_recipe_is_checked_without_torch_in_a_second(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from scaletrain.config.load import load_recipe; import scaletrain.config.deepspeed\n"
        f"load_recipe(pathlib.Path({str(write(tmp_path))!r}))\n"
        "print([m for m in ('torch', 'deepspeed', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_values_and_suggestions_are_shown_short() -> None:
    assert shown("a" * 100) == "a" * 57 + "..."
    assert shown(True) == "true"
    assert closest("LR", ["lr", "eps"]) == "lr"
    assert closest("zzz", ["lr"]) is None


def test_an_inner_section_that_is_empty_or_misspelt_leaves_the_other_rules_checked(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path), ["data.cache=null", "data.live=null"]) == load_recipe(write(tmp_path))
    text = GOOD.replace("{path: dataset}", "{mixture: {a: {path: x, weigth: 0}}}")
    assert fault(tmp_path, text).split("\n  ") == [
        "2 problems",
        "data.mixture.a.weigth=0 is unknown: did you mean data.mixture.a.weight?",
        "data.mixture gives no source a weight above 0: raise one",
    ]
    text = GOOD.replace("{path: dataset}", "{mixture: {a: {weight: 0.5}}, max_epochs: 2}")
    assert [line.split(":")[0] for line in fault(tmp_path, text).split("\n  ")] == [
        "2 problems",
        "data.mixture.a.path is not set",
        "data.max_epochs=2 is for data.path",
    ]
