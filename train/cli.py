"""What the commands share: the --config flag, errors in one line, quiet start."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import rich.console
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from train import process
from train.places import is_remote, place_of
from train.registry import ConfigError, nearest

# A flag that a function below defines is that of the command which calls it: --help shows it there.
flags.disclaim_key_flags()

HELP_CONFIG = "help-config"
MISSING = "--config is missing; for instance --config=train/configs/digits.py."
CACHE_VARIABLE = "ALIGN_JAX_CACHE"
ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = ROOT / "train" / "configs"
HELP = re.compile(r"--?(help|helpshort|helpfull|helpxml)|-\?")
CONFIG_OPTION = re.compile(r"(--?config)=([^:]+)(?::(.*))?", flags=re.DOTALL)


def define_config_flag() -> flags.FlagHolder[ConfigDict]:
    """The flag --config=FILE.py[:arg], with --config.KEY=VALUE for every key of the file."""
    flag = _config_flag()
    for name in ("config", HELP_CONFIG):
        flags.declare_key_flag(name)
    return flag


@functools.cache  # one flag, also where several commands are imported
def _config_flag() -> flags.FlagHolder[ConfigDict]:
    flags.DEFINE_bool(HELP_CONFIG, False, "Show every key of the config, and what it means.")
    return config_flags.DEFINE_config_file(
        "config",
        help_string="The experiment: a file in train/configs, such as digits.py, glue.py:mrpc, "
        "planetoid.py:cora, squad.py:v2 or vqa.py:easy; its docstring says what it needs and "
        "gives. Every key in it, and in common.py there, is a flag: --config.alignment.method=ct",
        lock_config=True,
    )


def define_checkpoint_flag() -> flags.FlagHolder[str | None]:
    """The flag --checkpoint=RUN_DIR."""
    flag = _checkpoint_flag()
    flags.declare_key_flag("checkpoint")
    return flag


@functools.cache  # as above
def _checkpoint_flag() -> flags.FlagHolder[str | None]:
    return flags.DEFINE_string("checkpoint", None, "The folder of a run.")


def run_command(main: Callable[[], None], interrupted: str = process.INTERRUPTED) -> NoReturn:
    """Parses the flags, runs a command and ends the process, as `train.process.run` says."""

    def with_flags(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise ConfigError(
                f"unexpected argument {argv[1]!r}; options start with --, see --help."
            )
        keep_logs_short()
        use_compilation_cache()
        main()

    process.run(lambda: app.run(with_flags, flags_parser=_parse_flags), interrupted)


def console() -> rich.console.Console:
    """The terminal; or a file, which has room for wide tables."""
    terminal = rich.console.Console()
    return terminal if terminal.is_terminal else rich.console.Console(width=160)


def keep_logs_short() -> None:
    """Keeps from the terminal what libraries log and the commands do not need, or say themselves.

    Orbax warns of options that it sets itself, and reports a checkpoint that it could not write as
    several errors with their traces, after which it raises what becomes the command's one line.
    """
    logging.use_absl_handler()  # `app.run` does, which not every command goes through
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().addFilter(lambda record: "orbax" not in record.pathname)


def require_config(flag: flags.FlagHolder[ConfigDict]) -> ConfigDict:
    """The config that was asked for; raises ConfigError if there is none, or it cannot be read."""
    if flag.value is None:
        raise ConfigError(MISSING)
    try:
        flag.value.is_locked  # noqa: B018  (a file that failed to load raises at its first use)
    except OSError as error:
        raise ConfigError(f"--config: {' '.join(str(error).split())}") from error
    if flags.FLAGS[HELP_CONFIG].value:
        from train.configs.keys import describe

        print(describe(flag.value))
        sys.exit(0)
    return flag.value


def load_config(name: str) -> ConfigDict:
    """The config that "FILE.py" or "FILE.py:ARGUMENT" describes, as the flag --config takes it.

    Raises:
        ConfigError: there is no such file, or it makes no config.

    Example:
        >>> load_config("train/configs/planetoid.py:cora").name
        'planetoid-cora'
    """
    file, _, argument = name.partition(":")
    return _made_by(find_config(file), argument)


def _made_by(file: str, argument: str) -> ConfigDict:
    make = runpy.run_path(file).get("get_config")
    if make is None:
        raise ConfigError(
            f"--config: {file} has no function get_config, and so is no experiment; see those in "
            f"train/configs, such as digits.py."
        )
    return make(argument) if argument else make()  # one's own may take none


def find_config(file: str) -> str:
    """The path of a config's file, given as such, from the checkout's root, or by its name alone.

    Example:
        >>> pathlib.Path(find_config("digits")).parent.name
        'configs'
    """
    for name in (file, f"{file}.py"):
        for folder in (pathlib.Path(), ROOT, CONFIGS):
            if (folder / name).is_file():
                return str(folder / name)
    known = sorted(x.name for x in CONFIGS.glob("*.py") if "def get_config(" in x.read_text())
    near = nearest(pathlib.Path(file).stem, [name.removesuffix(".py") for name in known])
    hint = near.replace('"? ', '.py"? ')
    raise ConfigError(
        f"--config: there is no file {file!r}; {hint}train/configs has {', '.join(known)}."
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in ~/.cache/align_jax or $ALIGN_JAX_CACHE.

    An empty $ALIGN_JAX_CACHE switches the cache off, and so does, with a warning, a folder that
    cannot be written to: JAX would warn of every program.
    """
    default = pathlib.Path.home() / ".cache" / "align_jax"
    folder = os.environ.get(CACHE_VARIABLE, str(default))
    if not folder:
        return
    place = place_of(folder, f"${CACHE_VARIABLE}", bucket=True)
    if not is_remote(place):
        try:
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            print(
                f"warning: compiled programs are not kept, for {place} cannot be written to "
                f"({error.strerror}). Name another folder by {CACHE_VARIABLE}, or none.",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    argv = _with_found_config(argv)
    try:
        return flags.FLAGS(argv)
    except SystemExit:
        if any(HELP.fullmatch(argument) for argument in argv[1:]):
            sys.exit(0)  # absl's status would be 1
        raise
    except flags.Error as error:
        # Above the last line: the trace of an error in the file.
        said = str(error).strip().splitlines()[-1]
        raise ConfigError(said.removeprefix("train.registry.ConfigError: ")) from error
    except (KeyError, AttributeError) as error:
        try:
            raise ConfigError(_unknown_key(argv, error)) from error
        except (KeyError, AttributeError) as own:  # the file itself raises it
            raise ConfigError(_broken_config(own)) from own
    except (ImportError, OSError):
        raise  # a package is missing, or standard output is full: whoever reads that says which
    except Exception as error:
        raise ConfigError(_broken_config(error)) from error


def _broken_config(error: Exception) -> str:
    """What is wrong with a config's file, and where."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    place = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"
    return f"--config cannot be loaded: {type(error).__name__}: {error}{place}."


def _with_found_config(argv: Sequence[str]) -> list[str]:
    """The arguments, with the config in one of them, and its file where `find_config` finds it."""
    found: list[str] = []
    for argument in argv:
        joined = argument
        if found[-1:] in (["--config"], ["-config"]):
            joined = f"{found.pop()}={argument}"
        if match := CONFIG_OPTION.fullmatch(joined):
            kind = "" if match[3] is None else f":{match[3]}"
            joined = f"{match[1]}={find_config(match[2])}{kind}"
        found.append(joined)
    return found


def _unknown_key(argv: Sequence[str], error: Exception) -> str:
    """Names the flag at fault and the nearest key of the config, in full."""
    named = next(filter(None, map(CONFIG_OPTION.fullmatch, argv)), None)
    if named is None:
        return MISSING
    # The flag has no value yet: the key at fault stopped its parsing.
    config = _made_by(named[2], named[3] or "")
    keys = _keys(config)
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.\[\]]+)", argument)
        if match and match[1] not in keys:
            section, _, name = match[1].rpartition(".")
            inside = {key.rpartition(".")[2]: key for key in keys if key.startswith(f"{section}.")}
            hint = nearest(name, inside) if inside else nearest(match[1], keys)
            known = ", ".join(inside or config)
            return f"the config has no key {match[1]!r}; {hint or f'known: {known}'}".rstrip()
    return str(error)


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """Every key in full: ["alignment", "alignment.method", ...]."""
    found = []
    for key in config:
        found.append(prefix + key)
        if isinstance(config[key], ConfigDict):
            found += _keys(config[key], f"{prefix}{key}.")
    return found
