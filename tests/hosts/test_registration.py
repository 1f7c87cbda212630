"""The names resolve without an import; each case runs in a fresh process."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import python

CREATE = """
import timm, torchvision
timm.create_model("vit_nano4_convstem")
torchvision.models.get_model("vit_nano_4_convstem")
print("ok")
"""


@pytest.mark.full
@pytest.mark.parametrize("order", ["timm", "torchvision", "torch", "timm.models", "torchvision.models"])
def test_any_import_order(order: str) -> None:
    python(f"import {order}\n{CREATE}")


@pytest.mark.full
@pytest.mark.parametrize("switch", ["TORCH_DEVICE_BACKEND_AUTOLOAD", "CONVSTEM_AUTOLOAD"])
def test_off_switches_and_the_ways_back(switch: str, tmp_path: Path) -> None:
    off: dict[str, Any] = {switch: "0"}
    assert "Unknown model" in python(CREATE, check=False, **off).stderr
    python("import convstem\n" + CREATE, **off)
    python(CREATE.replace("\ntimm.create", "\nimport convstem\ntimm.create", 1), **off)
    script = tmp_path / "script.py"
    script.write_text(CREATE + "import sys; assert sys.argv[1:] == ['--epochs', '3'], sys.argv\n")
    run = [sys.executable, "-m", "convstem", "run", str(script), "--epochs", "3"]
    assert subprocess.run(run, capture_output=True, text=True, env={**os.environ, **off}, check=True).stdout == "ok\n"


@pytest.mark.full
def test_run_passes_the_names_on_to_children(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {CREATE!r}], check=True)\n")
    env = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    run = [sys.executable, "-m", "convstem", "run", str(script)]
    assert subprocess.run(run, capture_output=True, text=True, env=env, check=True).stdout.strip() == "ok"


@pytest.mark.full
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_worker_processes(method: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, timm
        def work(name):
            import timm
            return timm.is_model(name)
        if __name__ == "__main__":
            with multiprocessing.get_context("{method}").Pool(1) as pool:
                print(pool.map(work, ["vit_nano4_convstem"]))
    """)
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True]"


def test_import_convstem_imports_neither_host() -> None:
    code = "import sys, convstem; print(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    assert python(code, CONVSTEM_AUTOLOAD="1").stdout.strip() == "[]"


def test_names_resolve_without_an_import_and_their_stubs_import_no_model_code() -> None:
    code = """
    import sys, timm
    from timm.models import vit_base_patch16_224, vit_b16_convstem, vit_base_patch16_224_convstem
    from torchvision.models import vit_b_16, vit_b_16_convstem, ViT_B_16_ConvStem_Weights
    assert timm.is_model("vit_b16_convstem")
    print(sorted(m for m in sys.modules if m.startswith("convstem.")))
    assert ViT_B_16_ConvStem_Weights.DEFAULT.meta["min_size"] == (224, 224)
    assert "convstem.registry.records" in sys.modules
    """
    loaded, created = python(textwrap.dedent(code) + CREATE).stdout.splitlines()
    assert created == "ok"
    assert "convstem.hosts.convstem_timm" in loaded
    assert "convstem.hosts.convstem_torchvision" in loaded
    assert "convstem.models.timm_models" not in loaded
    assert "transplant" not in loaded
    for slow in ("records", "catalog"):  # building them takes longer than the rest of a registration
        assert f"convstem.registry.{slow}'" not in loaded


@pytest.mark.full
def test_torchvision_alone_never_imports_timm() -> None:
    code = """
    import sys, torchvision
    torchvision.models.get_model("vit_nano_4_convstem", weights="DEFAULT")
    assert "timm" not in sys.modules
    """
    python(code)


@pytest.mark.full
def test_threads_and_reloads() -> None:
    code = """
    import threading, importlib
    errors = []
    def go(name):
        try: importlib.import_module(name)
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=go, args=(n,)) for n in ("timm.models", "torchvision.models") * 4]
    [t.start() for t in threads]; [t.join() for t in threads]
    assert not errors, errors
    import sys, timm, torchvision
    importlib.reload(timm.models); importlib.reload(torchvision.models)
    for name in [m for m in sys.modules if m.split(".")[0] == "timm"]:
        del sys.modules[name]
    import timm
    assert timm.is_model("vit_nano4_convstem") and timm.create_model("vit_nano4_convstem")
    assert timm.models.__spec__.loader.__class__.__module__.startswith(("importlib", "_frozen_importlib"))
    """
    python(code)


@pytest.mark.full
def test_a_taken_name_is_left_to_its_owner_and_reported() -> None:
    code = """
    import warnings, torch
    import timm.models._registry as registry
    import convstem.hosts.convstem_timm as ours
    from convstem.hosts.registration import register_host, _REGISTER
    def vit_b16_convstem(pretrained=False, **kwargs): return torch.nn.Linear(3, 3)
    for name in list(registry._model_entrypoints):
        if registry._model_entrypoints[name].__module__ == ours.__name__:
            del registry._model_entrypoints[name]; registry._clear_model_entries(name)
    registry.register_model(vit_b16_convstem)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record = register_host("timm", "test")
    assert record.refused == {"vit_b16_convstem": "registered by __main__"}
    assert "left 1 timm model name(s) to their owners: vit_b16_convstem" in str(caught[0].message)
    import timm
    assert isinstance(timm.create_model("vit_b16_convstem"), torch.nn.Linear)
    assert timm.is_model("vit_s16_convstem") and "vit_b16_convstem" not in record.names
    """
    python(code)


@pytest.mark.full
@pytest.mark.parametrize("host", ["timm", "torchvision"])
def test_registration_is_atomic_and_the_host_survives(host: str) -> None:
    code = f"""
    import sys, warnings, importlib
    from convstem.hosts import registration as register
    host, fail_at = "{host}", 5
    import timm.models._registry as tr, torchvision.models._api as tv
    table = tr._model_entrypoints if host == "timm" else tv.BUILTIN_MODELS
    module = importlib.import_module(f"convstem.hosts.convstem_{{host}}")
    home = getattr(module, "HOME", module.__name__)
    ours = [n for n, f in table.items() if f.__module__ == home]
    before = set(table) - set(ours)
    for name in ours:
        del table[name]
    import timm.models
    home = timm.models if host == "timm" else tv
    real = home.register_model
    count = 0
    def failing(x):
        global count
        count += 1
        if count == fail_at: raise RuntimeError("boom")
        return real(x)
    home.register_model = failing
    try:
        register.register_host(host, "test")
    except RuntimeError as error:
        assert str(error) == "boom"
    else:
        raise SystemExit("did not raise")
    assert set(table) == before
    assert register.REGISTRATIONS[host].error == "RuntimeError: boom" and not register.REGISTRATIONS[host].names
    home.register_model = real
    register.register()
    assert set(ours) <= set(table)
    """
    python(code)


@pytest.mark.full
def test_a_broken_registry_is_one_warning_and_the_hosts_work(tmp_path: Path) -> None:
    code = """
    import sys, warnings, pathlib
    from convstem.registry import tables
    (pathlib.Path(sys.argv[1]) / "weights.json").write_text('{"a": {"width": ')
    tables.data_dir = lambda name: pathlib.Path(sys.argv[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import timm
    said = [str(w.message) for w in caught if "convstem" in str(w.message)]
    assert len(said) == 1 and "RegistryError: weights.json: Expecting value" in said[0], said
    timm.create_model("vit_tiny_patch16_224", depth=1)
    from convstem.hosts.registration import REGISTRATIONS
    assert "Expecting value" in REGISTRATIONS["timm"].error
    """
    python(code, str(tmp_path))


@pytest.mark.full
def test_a_removed_package_is_one_warning_and_torch_works(tmp_path: Path) -> None:
    """The hook can outlive its package, after a moved editable checkout or a half-removed install."""
    hook = tmp_path / "_convstem_autoload.py"
    import _convstem_autoload

    hook.write_bytes(Path(_convstem_autoload.__file__).read_bytes())
    code = """
    import sys, warnings
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "convstem" or name.startswith("convstem."):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Missing())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import torch, timm
    said = [str(w.message) for w in caught if "convstem" in str(w.message)]
    assert len(said) == 1 and "No module named 'convstem" in said[0] and "CONVSTEM_AUTOLOAD=0" in said[0], said
    timm.create_model("vit_tiny_patch16_224", depth=1)
    """
    python(code, PYTHONPATH=str(tmp_path))


@pytest.mark.full
def test_doctor_tells_the_truth() -> None:
    def doctor(**env: str) -> tuple[int, dict[str, Any]]:
        run = [sys.executable, "-m", "convstem", "doctor", "--json"]
        done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, **env}, check=False)
        return done.returncode, json.loads(done.stdout)

    status, report = doctor()
    assert (status, report["ok"], report["hosts"]["timm"]["path"]) == (0, True, "torch autoload")
    assert "vit_b16_convstem" in report["hosts"]["timm"]["names"]
    status, report = doctor(CONVSTEM_AUTOLOAD="0")
    assert (status, report["ok"], report["hosts"]) == (1, False, {})
    assert "CONVSTEM_AUTOLOAD=0" in report["advice"]
