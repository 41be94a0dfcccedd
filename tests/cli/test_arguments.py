"""Flags: the command line wins over the environment, the environment over the default."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hal.cli.arguments import ENGINE_FLAGS, CommandLine, engine_config, report_error
from hal.config import EngineConfig
from hal.errors import ConfigError, UnsupportedError, WeightsError

COMMAND = CommandLine("hal-test", "A command.", (ENGINE_FLAGS,))


def config(*argv: str, **environ: str) -> EngineConfig:
    return engine_config(COMMAND.parse(argv, environ))


def test_defaults_are_those_of_the_config() -> None:
    assert COMMAND.parse([], {}) == {}
    assert config() == EngineConfig()


def test_every_engine_setting_has_a_flag() -> None:
    dests = {flag.dest for flag in ENGINE_FLAGS.flags} | {"model"}
    # vLLM's --enable-chunked-prefill / --no-enable-chunked-prefill set this one.
    assert EngineConfig.field_names() - dests == {"chunked_prefill"}


def test_every_flag_reaches_the_config() -> None:
    argv = (
        "model-x --device cpu --dtype float32 --memory 2GiB --max-model-len 64 --max-num-seqs 2 "
        "--max-num-batched-tokens 128 --block-size 32 --enforce-eager --no-cache "
        "--static-batching --trace t.jsonl "
        "--no-prefix-caching --cache-policy priority-lfu --cache-ttl 60 --swap-space 1GiB "
        "--max-pinned-share 0.25 "
        "--seed 3 --chat-template t.jinja --offline --kernel a=b "
        "--kernel c=d --strict "
        "--deterministic --threads 1 --no-enable-chunked-prefill"
    )
    assert config(*argv.split()) == EngineConfig(
        model="model-x",
        device="cpu",
        dtype="float32",
        memory="2GiB",
        max_model_len=64,
        max_num_seqs=2,
        max_num_batched_tokens=128,
        block_size=32,
        enforce_eager=True,
        static_batching=True,
        trace=Path("t.jsonl"),
        prefix_caching=False,
        cache_policy="priority-lfu",
        cache_ttl=60.0,
        swap_space="1GiB",
        max_pinned_share=0.25,
        cache=False,
        chunked_prefill=False,
        seed=3,
        chat_template=Path("t.jinja"),
        offline=True,
        kernel=("a=b", "c=d"),
        strict=True,
        deterministic=True,
        threads=1,
    )


def test_environment() -> None:
    found = config(
        "--max-num-seqs",
        "5",
        HAL_MAX_NUM_SEQS="7",
        HAL_MAX_MODEL_LEN="9",
        HAL_NO_PREFIX_CACHING="1",
        HAL_ENFORCE_EAGER="no",
        HAL_KERNEL="a=b,c=d",
        HAL_MODEL="m",
        HAL_GPU_MEMORY_UTILIZATION="0.25",
    )
    assert (found.max_num_seqs, found.max_model_len, found.model) == (5, 9, "m")
    assert (found.prefix_caching, found.enforce_eager) == (False, False)
    assert found.kernel == ("a=b", "c=d")
    assert found.memory == 0.25
    assert config("mine", HAL_MODEL="m").model == "mine"


def test_vllm_flags() -> None:
    argv = "--model m --gpu-memory-utilization 0.5 --tensor-parallel-size 1 --swap-space 0"
    assert config(*argv.split(), "--disable-log-requests") == EngineConfig(model="m", memory=0.5)
    assert config("--inter-token-target-ms", "20").inter_token_target_ms == 20.0
    assert config("--no-enable-prefix-caching").prefix_caching is False
    assert config("--enable-prefix-caching").prefix_caching is True
    assert config("--quantization", "int4").quantization == "int4"
    with pytest.raises(UnsupportedError, match="quantization='awq'"):
        config("--quantization", "awq")
    with pytest.raises(ConfigError, match="same setting"):
        config("--memory", "0.9", "--gpu-memory-utilization", "0.5")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--devise", "cpu"], "unknown flag --devise; did you mean --device"),
        (["--max-modl-len=5"], "unknown flag --max-modl-len; did you mean --max-model-len"),
        (["--qqqqqqq"], "see hal-test --help"),
        (["a", "b"], "unexpected argument 'b'"),
        (["a", "--model", "b"], "MODEL is 'a' and --model is 'b'"),
        (["--max-num-seqs", "many"], "--max-num-seqs.*'many'"),
        (["--max-num-seqs"], "--max-num-seqs"),
        (["--max-num-seqs", "-1"], "max_num_seqs must be"),
        (["--kernel", "linear"], "not OP=NAME"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(*argv)


def test_wrong_environment() -> None:
    with pytest.raises(ConfigError, match="HAL_STRICT='maybe'"):
        config(HAL_STRICT="maybe")
    (line,) = COMMAND.warnings({"HAL_MAX_NUM_SEQ": "1", "HAL_PORT": "1", "OTHER": "1"})
    assert "HAL_MAX_NUM_SEQ" in line
    assert "HAL_MAX_NUM_SEQS" in line


def test_no_abbreviations() -> None:
    with pytest.raises(ConfigError, match="--max-model"):
        config("--max-model", "5")


def test_the_last_line_is_the_cause(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error("hal-test", WeightsError("a.safetensors is cut")) == 3
    assert capsys.readouterr().err == "hal-test: HAL-E210: a.safetensors is cut\n"


def test_a_command_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    bare = CommandLine("hal-bare", "No model.", (ENGINE_FLAGS,), takes_model=False)
    assert bare.parse(["--device", "cpu"], {"HAL_MODEL": "x"}) == {"device": "cpu"}
    with pytest.raises(ConfigError, match="unexpected argument 'folder'; no MODEL"):
        bare.parse(["folder"], {})
    with pytest.raises(ConfigError, match="unknown flag --gpu-memory-utilization"):
        bare.parse(["--gpu-memory-utilization", "0.5"], {})
    with pytest.raises(SystemExit):
        bare.parse(["--help"], {})
    assert "MODEL" not in capsys.readouterr().out.replace("MAX_MODEL_LEN", "")


def in_file(folder: Path, text: str) -> str:
    path = folder / "hal.toml"
    path.write_text(text)
    return f"--config={path}"


def test_a_file_of_flags(tmp_path: Path) -> None:
    flag = in_file(
        tmp_path,
        """
        model = "m"
        max-num-seqs = 5
        max_model_len = 9
        cache-ttl = 1.5
        enforce-eager = true
        no-prefix-caching = true
        strict = false
        kernel = ["a=b", "c=d"]
        gpu-memory-utilization = 0.25
        """,
    )
    found = config(flag, "--max-num-seqs", "7", HAL_MAX_MODEL_LEN="11")
    assert (found.model, found.max_num_seqs, found.max_model_len) == ("m", 7, 11)
    assert (found.cache_ttl, found.memory) == (1.5, 0.25)
    assert (found.enforce_eager, found.prefix_caching, found.strict) == (True, False, False)
    assert found.kernel == ("a=b", "c=d")
    assert config(HAL_CONFIG=flag.removeprefix("--config=")).max_num_seqs == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-num-seq = 1", "'max-num-seq' is not a flag; did you mean max-num-seqs"),
        ("config = 'x'", "'config' is not a flag"),
        ("max-num-seqs = 'many'", "max-num-seqs = 'many'"),
        ("max-num-seqs = true", "max-num-seqs = True: not a switch"),
        ("strict = 1", "strict = '1': true or false is wanted"),
        ("dtype = ['a']", "one value is wanted"),
        ("[server]\nport = 1", "server: a dict cannot be a flag"),
        ("model = ", "is not TOML"),
    ],
)
def test_a_wrong_file_of_flags(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(in_file(tmp_path, text))


def test_no_file_of_flags(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config(f"--config={tmp_path / 'none'}")
