"""Files of settings in TOML: what they may say, and what is said of a fault in them."""

from pathlib import Path

import pytest

from mlxchat.config.pretrain import PretrainConfig
from mlxchat.config.run import RunConfig
from mlxchat.config.settings_file import MOST_SETTINGS, SettingsFile, line_of
from mlxchat.config.sft import SftConfig
from mlxchat.errors import ConfigError, NotFound


def read(
    folder: Path, text: str | bytes, kind: type[RunConfig] = PretrainConfig, *options: str
) -> SettingsFile:
    path = folder / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return SettingsFile.read(path, kind, options)


def test_settings_have_the_types_of_toml(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        'depth = 2\nbudget = "1h"\ndata_dir = "texts"\nstreaming = true\nfinal_lr_frac = 1\n'
        '[lora]\nrank = 2\nmodules = ["attn.c_q"]\n',
    )
    lora = {"rank": 2, "modules": ["attn.c_q"]}
    assert file.values["lora"] == lora
    assert PretrainConfig(**{**file.values, "init_from": "base", "budget": None}).depth == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeffdepth = 1\n", "depth = 1\r\nkeep = 1"])
def test_files_of_any_editor_can_be_read(tmp_path: Path, text: str) -> None:
    assert set(read(tmp_path, text).values) <= {"depth", "keep"}


def test_auto_stands_for_a_depth_that_the_budget_chooses(tmp_path: Path) -> None:
    assert read(tmp_path, 'depth = "auto"').values == {"depth": None}


FAULTS = [  # text, problem, remedy
    ("\nmax_seq_length = 5", "line 2: there is no setting 'max_seq_length'", "mean max_seq_len?"),
    ("max-seq-len = 5", "line 1: there is no setting 'max-seq-len'", "mean max_seq_len?"),
    ("ranks = 2", "line 1: there is no setting 'ranks'", "on the command line: `ranks`"),
    ("rank = 2", "line 1: there is no setting 'rank'", "below a line [lora]"),
    ("[model]\ndepth = 2", "line 1: there is no setting 'model'", "Remove the line [model]"),
    ("[loar]\nrank = 2", "line 1: there is no setting 'loar'", "Did you mean lora?"),
    ("zzz = 2", "line 1: there is no setting 'zzz'", "without the leading dashes"),
    ("[lora]\n\nrnk = 2", "line 3: [lora] has no setting 'rnk'", "Did you mean rank?"),
    ("[lora]\nzzz = 2", "line 2: [lora] has no setting 'zzz'", "It has: "),
    ('depth = "12"', 'line 1: depth = "12": input should be a valid integer', "layers"),
    ("depth = 1.0", "line 1: depth = 1.0: input should be a valid integer", "layers"),
    ("budget = 90", "line 1: budget = 90: input should be a valid string", "1h30m"),
    ("streaming = 1", "line 1: streaming = 1: input should be a valid boolean", "shard"),
    ("keep = 1979-05-27", "line 1: keep = 1979-05-27: it cannot be a date", "checkpoints"),
    ("keep = [[1979-05-27]]", "line 1: keep = ", "checkpoints"),
    ("depth = 0", "line 1: depth = 0: input should be greater than or equal to 1", "layers"),
    ("matrix_lr = nan", "line 1: matrix_lr = NaN: ", "Muon"),
    ('model_tag = "a/b"', 'line 1: model_tag = "a/b": only letters', "Name of the run"),
    ('\narch = "new"', 'line 2: arch = "new": ', "nanochat"),
    ("[lora]\nrank = 0", "line 2: lora.rank = 0: input should be greater", "Rank"),
    ("lora = 3", "line 1: lora = 3: input should be", "adapter"),
    ("depth.a.b = 1", 'line 1: depth = {"a": {"b": 1}}: input should be', "layers"),
    ("depth 12", "is not TOML: expected '=' after", "depth = 4"),
    ("depth = 1\ndepth = 2", "is not TOML: a key appears twice (at line 2, its", "depth = 4"),
    ("depth = 1\ndepth = 2\n\n", "a key appears twice (at line 2, column 10)", "depth = 4"),
    ("\ndepth =", "is not TOML: invalid value (at line 2", "depth = 4"),
    (f"depth = {'[' * 5000}", "is not TOML: ", "depth = 4"),
    (f"depth{'.a' * 5000} = 1", "is not TOML: it is nested too deeply", "depth = 4"),
    (f"depth = {'9' * 5000}", "is not TOML: ", "depth = 4"),
    (f"depth = {'9' * 4000}", "line 1: depth = 9999", "layers"),
    (b"depth = 1 # \xff", "cannot be read: it is not UTF-8", "Check"),
    ("#" * (MOST_SETTINGS + 1), "cannot be read: More than 65,536 bytes", "Check"),
]


@pytest.mark.parametrize(
    ("text", "problem", "remedy"), FAULTS, ids=[str(f[1])[:40] for f in FAULTS]
)
def test_a_fault_is_named_with_its_line(
    tmp_path: Path, text: str | bytes, problem: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text, PretrainConfig, "ranks")
    assert raised.value.problem.startswith(str(tmp_path / "run.toml"))
    assert problem in raised.value.problem
    assert len(raised.value.problem) < 400
    assert remedy in raised.value.remedy


def test_lists_are_settings_of_several_values(tmp_path: Path) -> None:
    assert read(tmp_path, 'data = ["a.jsonl", "b.jsonl:2"]', SftConfig).values["data"]
    with pytest.raises(ConfigError, match=r"line 3: data = .* input should be a valid string"):
        read(tmp_path, '\n\ndata = [\n  "a.jsonl",\n  5,\n]', SftConfig)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is no settings file"):
        SettingsFile.read(tmp_path / "none.toml", PretrainConfig)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        SettingsFile.read(tmp_path, PretrainConfig)


TEXT = '''# depth = 1
endpoint = """
depth = 5
"""
"depth" = 4
dropout = 0.5

[lora] # dropout = 1
  dropout = [
  1
]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (["endpoint"], 2),
        (["depth"], 5),
        (["dropout"], 6),
        (["lora"], 8),
        (["lora", "dropout"], 9),
        (["nothing"], None),
    ],
)
def test_the_line_of_a_key_is_found_past_comments_and_texts(
    path: list[str], line: int | None
) -> None:
    assert line_of(TEXT, path) == line


def test_a_fault_that_shows_only_in_use_is_traced_to_its_line(tmp_path: Path) -> None:
    file = read(tmp_path, 'depth = 1\nmemory_limit = "12"\nrecipe = "budget"\n')
    with pytest.raises(ConfigError) as raised:
        PretrainConfig(**file.values)
    assert "run.toml, line 2: '12' is not an amount" in file.explained(raised.value).problem
    other = ConfigError("Something else.")
    assert file.explained(other) is other


def test_settings_that_lack_others_can_be_in_a_file(tmp_path: Path) -> None:
    """The command line may give the others."""
    file = read(tmp_path, 'recipe = "budget"\nlora = true')
    assert file.values == {"recipe": "budget", "lora": True}
