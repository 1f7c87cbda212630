"""With other import hooks, interpreters and users, the hosts import as without us, and our names resolve."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import convstem
from tests.support.processes import python

HAS_NAMES = "\nassert timm.is_model('vit_nano4_convstem'), 'no names'\nprint('names')"

ASKS_THE_OTHERS = """
import sys
class Other:
    def find_spec(self, name, path=None, target=None):
        return next((s for f in sys.meta_path if f is not self and (s := f.find_spec(name, path, target))), None)
"""

ASKS_PATHFINDER = """
import sys
from importlib.machinery import PathFinder, SourceFileLoader
class Loader(SourceFileLoader):
    seen = []
    def exec_module(self, module):
        self.seen.append(module.__name__)
        super().exec_module(module)
class Other:  # as those of jaxtyping and typeguard: what matches is theirs, and nobody behind them is asked
    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name.split(".")[0] == "timm" else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(name, spec.loader.path)
        return spec
"""


@pytest.mark.full
@pytest.mark.parametrize("place", ["0", "len(sys.meta_path)"])
def test_a_finder_that_asks_the_others_as_ours_does(place: str) -> None:
    code = f"import torch\n{ASKS_THE_OTHERS}\nsys.meta_path.insert({place}, Other())\nimport timm{HAS_NAMES}"
    assert python(code).stdout == "names\n"


@pytest.mark.full
def test_two_such_finders_beside_ours() -> None:
    guarded = """
class Guarded(Other):  # as ours: it does not ask while it is being asked
    busy = False
    def find_spec(self, *args):
        if self.busy:
            return None
        self.busy = True
        try:
            return super().find_spec(*args)
        finally:
            self.busy = False
sys.meta_path[:0] = [Guarded(), Guarded()]
"""
    assert python(f"import torch\n{ASKS_THE_OTHERS}{guarded}\nimport timm{HAS_NAMES}").stdout == "names\n"


@pytest.mark.full
@pytest.mark.parametrize("again", ["", "import convstem\n"], ids=["autoload", "import convstem"])
def test_a_hook_that_asks_pathfinder_alone(again: str) -> None:
    code = f"import torch\n{ASKS_PATHFINDER}\nsys.meta_path.insert(0, Other())\n{again}import timm{HAS_NAMES}"
    seen = "\nassert 'timm.models' in Loader.seen  # its work is done too\n"
    assert python(code + seen).stdout == "names\n"
    without = f"import torch\n{ASKS_PATHFINDER}\nsys.meta_path.insert(0, Other())\nimport timm{HAS_NAMES}"
    assert "no names" in python(without, check=False, CONVSTEM_AUTOLOAD="0").stderr  # negative control


@pytest.mark.full
def test_a_loader_is_copied() -> None:
    code = """
    import copy, importlib.util, sys, timm
    del sys.modules["timm.models"]
    loader = importlib.util.find_spec("timm.models").loader
    assert type(loader).__name__ == "RegisteringLoader"
    for twin in (copy.copy(loader), copy.deepcopy(loader)):
        assert twin.host == "timm" and twin.get_filename("timm.models") == loader.get_filename("timm.models")
    """
    python(code)


@pytest.mark.full
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.modules['convstem.registry.tables'] = None\nimport timm", "could not register its models"),
        ("import _convstem_autoload as a; a.install_finder = lambda path: 1 / 0\na.install()", "ZeroDivisionError"),
        (
            "import timm, timm.models._registry as r, _convstem_autoload as a\n"
            "def other(pretrained=False): pass\n"
            "r._model_entrypoints['vit_b16_convstem'] = other; a.register('timm', 'torch autoload')",
            "convstem left 1 timm model name(s) to their owners: vit_b16_convstem",
        ),
    ],
    ids=["damaged", "no finder", "a taken name"],
)
def test_where_warnings_are_errors_the_hosts_are_imported(code: str, said: str) -> None:
    done = python(f"{code}\nprint('imported')", check=False)
    assert (done.returncode, done.stdout) == (0, "imported\n"), done.stderr
    assert "RuntimeWarning: convstem" in done.stderr and said in done.stderr


@pytest.mark.full
def test_without_standard_error_too() -> None:
    code = "import sys; sys.stderr = None; sys.modules['convstem.registry.tables'] = None\nimport timm"
    assert python(f"{code}\nprint('imported')", check=False).stdout == "imported\n"


def package_zip(path: Path) -> Path:
    """Write our code into a zip file like zipapps and freezers: without stubs and data."""
    root = Path(convstem.__file__).parents[1]
    with zipfile.ZipFile(path, "w") as archive:
        for file in [root / "_convstem_autoload.py", *(root / "convstem").rglob("*.py")]:
            archive.write(file, file.relative_to(root))
    return path


@pytest.mark.full
def test_from_a_zip_file(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(package_zip(tmp_path / 'c.zip'))!r})\n"
    code += "import convstem, timm\nassert '.zip' in convstem.__file__\nassert callable(convstem.load)\n"
    done = python(code + "print(timm.is_model('vit_tiny_patch16_224'))", check=False, PYTHONPATH="")
    assert done.stdout == "True\n", done.stderr
    assert "data folder 'registry' is missing from the installation; reinstall convstem, unpacked" in done.stderr


HOMELESS = ["unshare", "--user", "--map-user=12345", "--map-group=12345"]


def may_unshare() -> bool:
    return bool(shutil.which("unshare")) and subprocess.run([*HOMELESS, "true"], check=False).returncode == 0


@pytest.mark.full
@pytest.mark.skipif(not may_unshare(), reason="this kernel gives no user namespaces")
def test_a_user_without_home_and_passwd_entry(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "HF_HOME", "CONVSTEM_CACHE", "HF_HUB_CACHE")}
    tmp_path.chmod(0o777)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*HOMELESS, sys.executable, *command], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert "home" in run("-c", "import pathlib; pathlib.Path.home()").stderr  # negative control
    loaded = run("-c", "import timm; timm.create_model('vit_nano4_convstem', pretrained=True); print('loaded')")
    assert loaded.stdout == "loaded\n", loaded.stderr
    assert run("-m", "convstem", "cache", "--clear").returncode == 0
    assert "is switched off" in run("-c", "import convstem; convstem.load('org/name')").stderr
    assert not list(tmp_path.iterdir())  # no folder named ~
