# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""A push makes one atomic, idempotent, verified commit of any form of a user's model."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load

from convstem.errors import HubError
from convstem.hub.repo_cache import Listed, Listing
from convstem.hub.source import EVALUATION
from convstem.publishing import commit as hub_commit
from convstem.publishing.commit import Target
from convstem.publishing.push import write_card
from tests.support.hub_server import Client, Fault, HubServer, run_python
from tests.support.hub_server.client import Outcome, environment
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401
from tests.support.hub_server.store import git_hash

REPO = "writer/nano"
FILES = ["README.md", "config.json", "model.safetensors"]
MODEL = """
import timm, torch, torchvision, convstem
torch.manual_seed(0)
nano = timm.create_model("vit_nano4_convstem", num_classes=3, pretrained_cfg_overlay={"label_names": ["a", "b", "c"]})
"""


@pytest.fixture
def pusher(hub: HubServer, client: Client) -> Client:
    """A client with a small model named ``nano``."""
    assert client(MODEL).error is None
    return client


def push(client: Client, what: str = "nano", repo: str = REPO, options: str = "") -> Outcome:
    return client(f"result = convstem.push({what}, {repo!r}, license='apache-2.0', {options}).to_json()")


def writes(hub: HubServer) -> list[tuple[str, str]]:
    return [(method, path) for _, method, path, _ in hub.log if method != "GET"]


def test_one_commit_that_timm_loads(hub: HubServer, pusher: Client) -> None:
    outcome = push(pusher, options="metrics={'acc@1': 12.5}, dataset='CIFAR-10'")
    assert outcome.error is None, outcome.output
    assert outcome.value["files"] == dict.fromkeys([*FILES, EVALUATION], "add")
    assert hub.store.names(REPO) == [EVALUATION, *FILES]
    (entry,) = written = yaml.safe_load(hub.store.read(REPO, EVALUATION))
    assert entry["dataset"] == {"id": "uoft-cs/cifar10", "task_id": "default"}
    assert (entry["value"], entry["notes"], entry["source"]["name"]) == (12.5, "acc@1", "Model card")
    if hasattr(huggingface_hub, "parse_eval_result_entries"):  # the oldest supported version lacks it
        (parsed,) = huggingface_hub.parse_eval_result_entries(written)
        assert (parsed.dataset_id, parsed.value) == ("uoft-cs/cifar10", 12.5)
        assert huggingface_hub.eval_result_entries_to_yaml([parsed]) == written
    assert hub.store.history(REPO) == ["Push vit_nano4_convstem with convstem"]
    config = json.loads(hub.store.read(REPO, "config.json"))
    assert config["architecture"] == "vit_nano4_convstem"
    assert config["label_names"] == ["a", "b", "c"]
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    data = ModelCard(hub.store.read(REPO, "README.md").decode()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("apache-2.0", "timm", "image-classification")
    assert data.eval_results[0].metric_value == 12.5
    same = pusher(f"""
        back = timm.create_model("hf-hub:{REPO}", pretrained=True)
        pairs = zip(nano.state_dict().items(), back.state_dict().items(), strict=True)
        result = all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    """)
    assert same.value is True, same.error


@pytest.mark.full
def test_a_transplant_under_a_licence_that_the_hub_does_not_list(hub: HubServer, client: Client) -> None:
    made = client("""
        import convstem, timm
        source = timm.create_model("vit_small_patch16_dinov3", depth=1, num_classes=3)
        twin = convstem.transplant(source)
        own = "---\\nlicense: dinov3-license\\n---\\n"
    """)
    assert made.error is None
    refused = client(f"convstem.push(twin, {REPO!r}, license='dinov3-license', card=own)")
    assert '"license" must be one of [' in refused.error
    pushed = client(f"result = convstem.push(twin, {REPO!r}, license='dinov3-license').to_json()")
    assert pushed.value["files"] == dict.fromkeys(FILES, "add")
    data = ModelCard(hub.store.read(REPO, "README.md").decode()).data
    assert (data.license, data.license_name) == ("other", "dinov3-license")
    again = client(f"result = timm.create_model('hf-hub:{REPO}', pretrained=True).pretrained_cfg['architecture']")
    assert again.value == "vit_s16_dinov3_convstem"


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "stride"),
    [
        ("timm.create_model('vit_nano4_convstem', stride=2, img_size=64)", 2),
        ("convstem.transplant(timm.create_model('vit_tiny_patch16_224', depth=1, img_size=64), stride=8)", 8),
        ("convstem.transplant(timm.create_model('vit_tiny_patch16_224', depth=1, img_size=32), stride=32)", 32),
    ],
)
def test_a_pushed_model_keeps_its_stride(hub: HubServer, pusher: Client, make: str, stride: int) -> None:
    assert pusher(f"tokens = {make}.eval()").error is None
    outcome = push(pusher, "tokens", "writer/tokens")
    assert outcome.error is None, outcome.output
    config = json.loads(hub.store.read("writer/tokens", "config.json"))
    assert config["model_args"]["stride"] == stride
    read = pusher("""
there = timm.create_model("hf-hub:writer/tokens", pretrained=True).eval()
images = torch.rand(2, 3, 64, 64)
result = [there.patch_embed.grid_size, (there(images) - tokens(images)).abs().max().item()]
""")
    assert (read.error, read.value) == (None, [[64 // stride, 64 // stride], 0])


def test_the_same_content_again_sends_nothing(hub: HubServer, pusher: Client) -> None:
    first = push(pusher)
    hub.log.clear()
    again = push(pusher)
    assert again.value == {**first.value, "changed": False, "files": dict.fromkeys(FILES, "same")}
    assert writes(hub) == []
    pusher("with torch.no_grad(): nano.head.bias.add_(1)")
    assert push(pusher).value["files"]["model.safetensors"] == "update"  # negative control


@pytest.mark.full
def test_a_dry_run_sends_nothing(hub: HubServer, pusher: Client) -> None:
    outcome = push(pusher, options="dry_run=True")
    assert outcome.value["files"] == dict.fromkeys(FILES, "add")
    assert outcome.value["commit"] is None
    assert writes(hub) == []


@pytest.mark.full
def test_private_and_branches(hub: HubServer, pusher: Client) -> None:
    push(pusher, options="private=True")
    assert hub.store.repos[REPO].readers == {"writer"}
    outcome = push(pusher, options="revision='dev', metrics={'acc@1': 1}, dataset='CIFAR-10'")
    assert outcome.value["files"]["README.md"] == "update"
    assert hub.store.names(REPO, "dev") == [EVALUATION, *FILES]
    assert b"acc@1" not in hub.store.read(REPO, "README.md")


@pytest.mark.full
@pytest.mark.parametrize(
    ("make", "what"),
    [
        ("import copy; m = copy.deepcopy(nano).to(memory_format=torch.channels_last)", "m"),
        ("m = torchvision.models.get_model('vit_nano_4_convstem', num_classes=3)", "m"),
        ("m = torchvision.models.get_model('vit_nano_4_convstem', num_classes=3, image_size=48)", "m"),
        ("m = timm.create_model('vit_nano4_convstem', stem_channels=[8, 16], img_size=64, in_chans=1)", "m"),
        (
            "m = convstem.transplant(timm.create_model('vit_tiny_patch16_224', depth=1, num_classes=2, img_size=32))",
            "m",
        ),
        ("import convstem; m = convstem.pull('vit_nano4_convstem.cifar10', out={out!r})", "m"),
        ("save(nano, {out!r}); m = {out!r}", "m"),
    ],
    ids=["channels_last", "torchvision", "torchvision-48", "other-stem", "transplanted", "folder", "checkpoint"],
)
def test_what_can_be_pushed(hub: HubServer, pusher: Client, tmp_path: Path, make: str, what: str) -> None:
    out = str(tmp_path / ("last.pth.tar" if "save(" in make else "folder"))
    assert pusher(CHECKPOINT).error is None
    assert pusher(make.format(out=out)).error is None
    outcome = push(pusher, what)
    assert outcome.error is None, outcome.output
    checks = pusher(f"r = convstem.verify('{REPO}'); result = [r.ok, [c.detail for c in r.checks if not c.ok]]")
    assert checks.value == [True, []]
    loaded = pusher(f"back = timm.create_model('hf-hub:{REPO}', pretrained=True); result = back.num_classes")
    assert loaded.error is None, loaded.output


CHECKPOINT = """
from argparse import Namespace
def save(model, path, ema=None, arch="vit_nano4_convstem"):
    arguments = Namespace(model=arch, mean=[0.1, 0.2, 0.3], img_size=None, gp=None, in_chans=None, model_kwargs={})
    state = {"arch": arch, "state_dict": model.state_dict(), "optimizer": {}, "epoch": 3, "args": arguments}
    torch.save({**state, **({"state_dict_ema": ema.state_dict()} if ema else {})}, path)
"""


@pytest.mark.full
def test_a_checkpoint_brings_its_preprocessing_and_its_averaged_weights(
    hub: HubServer, pusher: Client, tmp_path: Path
) -> None:
    path = str(tmp_path / "last.pth.tar")
    pusher(CHECKPOINT + f"import copy\nema = copy.deepcopy(nano)\nema.head.bias.data += 1\nsave(nano, {path!r}, ema)")
    for options, shift in (("", 0.0), ("use_ema=True", 1.0)):
        assert push(pusher, repr(path), options=options).error is None
        bias = load(hub.store.read(REPO, "model.safetensors"))["head.bias"]
        assert bias.tolist() == pytest.approx([shift] * 3)
    assert json.loads(hub.store.read(REPO, "config.json"))["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.full
@pytest.mark.parametrize(
    ("prepare", "call", "message"),
    [
        ("", "convstem.push(nano, 'writer/x')", "missing 1 required keyword-only argument: 'license'"),
        ("", "convstem.push(nano, 'writer/x', license='')", "a licence is required, as an SPDX identifier"),
        ("", "convstem.push(nano, 'writer/x', license='unknown')", "a licence is required"),
        ("", "convstem.push(nano, 'a/b/c', license='mit')", "Repo id must"),
        ("", "convstem.push(3, 'writer/x', license='mit')", "a model, a folder or a checkpoint .* got int"),
        ("", "convstem.push('absent', 'writer/x', license='mit')",
         "absent is a name .there is no file or folder of this name., but push takes a folder"),
        ("", "convstem.push({tmp!r}, 'writer/x', license='mit')", "has no config.json and no model.safetensors"),
        ("m = timm.create_model('test_vit')", "convstem.push(m, 'writer/x', license='mit')",
         "expected a conv-stem architecture of convstem, got 'test_vit'.*`convstem transplant`"),
        ("m = timm.create_model('vit_nano4_convstem', device='meta')", "convstem.push(m, 'writer/x', license='mit')",
         "the model is on the meta device and has no weights"),
        ("import copy; m = copy.deepcopy(nano); m.head.bias.data[0] = float('nan')",
         "convstem.push(m, 'writer/x', license='mit')", "holds NaN or Inf in head.bias"),
        ("", "convstem.push(nano, 'writer/x', "
         "license='mit', metrics={{'acc@1': 1}})", "metrics need the dataset they were measured on"),
        ("", "convstem.push(nano, 'writer/x', license='mit', card='---\\nlicense: gpl-3.0\\n---\\n')",
         "the card says license: gpl-3.0, but license='mit' was given"),
        ("", "convstem.push(nano, 'writer/x', license='mit', tag='nano')",
         "unknown convstem model 'nano'; did you mean vit_nano4_convstem"),
        ("", "convstem.push(nano, 'writer/x', license='mit', token='reader')",
         r"refuses writer/x \(403\).*Pushing needs a token that may write to writer/x"),
        (CHECKPOINT.replace("{", "{{").replace("}", "}}") + "save(nano, {tmp!r} + '/c.pth')",
         "convstem.push({tmp!r} + '/c.pth', 'writer/x', license='mit', use_ema=True)",
         "c.pth has no state_dict_ema; the weights it has: state_dict"),
        (CHECKPOINT.replace("{", "{{").replace("}", "}}") + "save(nano, {tmp!r} + '/c.pth', arch='resnet50')",
         "convstem.push({tmp!r} + '/c.pth', 'writer/x', license='mit')", "expected a conv-stem .* got 'resnet50'"),
        ("import pickle, pathlib; pathlib.Path({tmp!r}, 'c.pth').write_bytes(pickle.dumps(print))",
         "convstem.push({tmp!r} + '/c.pth', 'writer/x', license='mit')", "cannot be opened without running code"),
    ],
)  # fmt: skip
def test_bad_input_sends_nothing(
    hub: HubServer, pusher: Client, tmp_path: Path, prepare: str, call: str, message: str
) -> None:
    assert pusher(prepare.format(tmp=str(tmp_path))).error is None
    outcome = pusher(call.format(tmp=str(tmp_path)))
    assert outcome.error is not None
    assert re.search(message, outcome.error), outcome.error
    assert [path for method, path in writes(hub) if path != "/api/repos/create"] == []
    assert "writer/x" not in hub.store.repos


def test_a_card_that_is_a_path_is_read_whatever_its_suffix(tmp_path: Path) -> None:
    card = tmp_path / "card.txt"
    card.write_text("---\nlicense: mit\n---\nOurs.\n")
    write_card(tmp_path, "org/m", "mit", None, card, {})
    assert (tmp_path / "README.md").read_text() == card.read_text()


@pytest.mark.full
def test_somebody_else_was_faster(hub: HubServer, pusher: Client) -> None:
    """Their commit lands between our look at the branch and our commit."""
    push(pusher)
    before = hub.store.repos[REPO].resolve("main")
    pusher("nano.head.bias.data += 1")
    hub.arm(Fault(origin="hub", method="POST", path="/preupload/", wait=1.0))
    hub.log.clear()
    theirs = []

    def commit_theirs() -> None:
        deadline = time.monotonic() + 60
        while not any("/preupload/" in path for _, path in writes(hub)) and time.monotonic() < deadline:
            time.sleep(0.01)
        theirs.append(hub.store.commit(REPO, "main", {"theirs.txt": b"x"}))

    somebody = threading.Thread(target=commit_theirs)
    somebody.start()
    outcome = push(pusher)
    somebody.join()
    assert f"expected commit {before}, found {theirs[0]}" in outcome.error
    assert hub.store.repos[REPO].resolve("main") == theirs[0]
    assert push(pusher).error is None
    assert "theirs.txt" in hub.store.names(REPO)


def test_a_commit_that_holds_something_else_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    right = {name: Listed(1, git_hash(name.encode())) for name in FILES}
    wrong = {**right, "config.json": Listed(1, "0" * 40)}
    before = Listing("1" * 40, {})
    for files, message in ((right, None), (wrong, "does not hold what was sent: config.json differ")):
        monkeypatch.setattr(Target, "listing", lambda self, revision=None, files=files: Listing("2" * 40, files))
        with pytest.raises(HubError, match=message) if message else nullcontext():
            hub_commit._verified(tmp_path, Target("org/m"), "2" * 40, before, None)


@pytest.mark.full
def test_two_pushers_at_once(hub: HubServer, pusher: Client) -> None:
    """Both start from the same commit; one wins, the other gets an error, nothing is lost."""
    push(pusher)
    hub.arm(Fault(origin="hub", method="POST", path="/commit/", wait=2.0, times=2))
    code = (
        MODEL
        + f"""
nano.head.bias.data += SHIFT
try:
    print("won", convstem.push(nano, {REPO!r}, license="apache-2.0").commit)
except OSError as error:
    print("told", error)
"""
    )
    env = environment(**{**hub.env, "HF_HUB_ETAG_TIMEOUT": "10"}, HF_TOKEN="writer")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.replace("SHIFT", str(s))], env=env, stdout=subprocess.PIPE, text=True
        )
        for s in (1, 2)
    ]
    said = sorted(process.communicate(timeout=120)[0].split(maxsplit=1) for process in processes)
    assert [words[0] for words in said] == ["told", "won"]
    head = hub.store.repos[REPO].resolve("main")
    assert said[1][1].strip() == head
    assert f"found {head}" in said[0][1]
    assert len(hub.store.history(REPO)) == 2


@pytest.mark.full
@pytest.mark.parametrize(
    "where", [{"method": "PUT", "origin": "cdn"}, {"method": "POST", "origin": "hub", "path": "/commit/"}]
)
def test_killed_while_pushing(hub: HubServer, pusher: Client, where: Any) -> None:
    push(pusher)
    before = hub.store.history(REPO)
    hub.arm(Fault(**where, wait=3.0))
    code = MODEL + f"nano.head.bias.data += 1\nconvstem.push(nano, {REPO!r}, license='apache-2.0')"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(**hub.env, HF_TOKEN="writer"))
    while not any(method == where["method"] and where.get("path", "") in path for method, path in writes(hub)):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert hub.store.history(REPO) == before
    assert pusher(f"result = convstem.verify('{REPO}').ok").value is True
    hub.arm()
    pusher("nano.head.bias.data += 1")
    assert push(pusher).error is None


@pytest.mark.full
def test_a_fresh_process_loads_by_name_without_importing_convstem(hub: HubServer, pusher: Client, cache: str) -> None:
    push(pusher)
    code = f"import timm\nprint(timm.create_model('hf-hub:{REPO}', pretrained=True).head.bias.tolist())"
    process = run_python(code, **hub.env, HF_HUB_CACHE=cache)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "[0.0, 0.0, 0.0]"


@pytest.mark.full
def test_the_card_of_a_transplanted_random_model_names_no_source(hub: HubServer, pusher: Client) -> None:
    pusher("m = convstem.transplant(timm.create_model('vit_tiny_patch16_224', depth=1))")
    assert push(pusher, "m").error is None
    card = ModelCard(hub.store.read(REPO, "README.md").decode())
    assert card.data.base_model is None
    assert "not trained further" not in card.text


@pytest.mark.full
def test_a_transplanted_folder_keeps_its_card(hub: HubServer, pusher: Client, tmp_path: Path) -> None:
    """``convstem transplant --out`` writes the card before the repository has a name, without local paths."""
    made = pusher(f"""
        import pathlib
        from convstem.publishing.derived import transplant_to_folder
        source = timm.create_model("vit_tiny_patch16_224", depth=1)
        timm.models.save_for_hf(source, {str(tmp_path / "source")!r}, safe_serialization=True)
        transplant_to_folder("local-dir:{tmp_path / "source"}", pathlib.Path({str(tmp_path / "out")!r}))
    """)
    assert made.error is None, made.output
    assert push(pusher, repr(str(tmp_path / "out"))).error is None
    text = hub.store.read(REPO, "README.md").decode()
    assert f"hf-hub:{REPO}" in text
    assert "function preserved, not trained further" in text
    assert "ORG/NAME" not in text
    assert str(tmp_path) not in text


LOAD_FAULTS = {
    "flipped": (Fault(flip=1000),),
    "flipped-every-time": (Fault(flip=1000, times=99),),
    "truncated": (Fault(truncate=1000), Fault(origin="hub", method="HEAD", path="model.safe", hide=("X-Linked-Size",))),
    "reset": (Fault(reset=100_000),),
    "500": (Fault(status=500),),
}


@pytest.mark.full
@pytest.mark.parametrize("name", LOAD_FAULTS)
def test_loading_under_faults(hub: HubServer, pusher: Client, tmp_path: Path, name: str) -> None:
    """From a cold cache, timm and convstem.load give the right weights, or a clear error and then the right weights."""
    push(pusher)
    code = """
        model = {load}
        pairs = zip(nano.state_dict().values(), model.state_dict().values(), strict=True)
        result = all(torch.equal(a, b) for a, b in pairs)
    """
    for index, load_it in enumerate(
        ("timm.create_model('hf-hub:writer/nano', pretrained=True, cache_dir={c!r})",
         "convstem.load('writer/nano', cache_dir={c!r})")
    ):  # fmt: skip
        text = code.format(load=load_it.format(c=str(tmp_path / str(index))))
        hub.arm(*LOAD_FAULTS[name])
        outcome = pusher(text)
        if outcome.error:
            assert "model.safetensors of writer/nano is damaged after two downloads: expected hash" in outcome.error
            assert name == "flipped-every-time"
        else:
            assert outcome.value is True
        hub.arm()
        assert pusher(text).value is True


@pytest.mark.full
def test_a_damaged_config_is_fetched_again(hub: HubServer, pusher: Client, tmp_path: Path) -> None:
    push(pusher)
    hub.arm(Fault(origin="hub", path="config.json", flip=-3))
    broken = pusher(f"timm.create_model('hf-hub:{REPO}', cache_dir={str(tmp_path)!r})")
    assert broken.kind == "JSONDecodeError"  # negative control: timm reads the config itself
    assert pusher(f"convstem.load('{REPO}', cache_dir={str(tmp_path)!r})").error is None
    assert pusher(f"timm.create_model('hf-hub:{REPO}', cache_dir={str(tmp_path)!r})").error is None


@pytest.mark.full
def test_a_config_that_is_damaged_but_readable_is_noticed(hub: HubServer, pusher: Client, tmp_path: Path) -> None:
    """timm reads the config before our code runs, so a load that read a damaged config must fail."""
    push(pusher)
    load = f"result = timm.create_model('hf-hub:{REPO}', pretrained=True, cache_dir={str(tmp_path)!r}).num_classes"
    hub.arm(Fault(origin="hub", path="config.json", flip=hub.store.read(REPO, "config.json").index(b"0.4914")))
    plain = load.replace("pretrained=True, ", "")
    assert pusher(plain).error is None  # negative control: without weights nothing is checked
    broken = pusher(load)
    assert broken.kind == "HubError"
    assert "config.json of writer/nano was damaged in the cache when timm read it; it has been fetched" in broken.error
    assert pusher(load).error is None


@pytest.mark.full
def test_the_examples_of_a_pushed_card_run(hub: HubServer, pusher: Client) -> None:
    push(pusher)
    blocks = re.findall(r"```python\n(.*?)```", hub.store.read(REPO, "README.md").decode(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        outcome = pusher(block + "result = model(torch.zeros(1, 3, 32, 32)).shape[1]")
        assert outcome.value == 3, outcome.output


@pytest.mark.full
def test_transformers_loads_it(hub: HubServer, pusher: Client, cache: str) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    push(pusher)
    code = f"""
        from transformers import AutoModelForImageClassification, TimmWrapperForImageClassification
        import torch, timm
        wrapped = AutoModelForImageClassification.from_pretrained({REPO!r})
        assert isinstance(wrapped, TimmWrapperForImageClassification), type(wrapped)
        plain = timm.create_model("hf-hub:{REPO}", pretrained=True).eval()
        x = torch.rand(1, 3, 32, 32)
        assert torch.equal(wrapped.eval()(x).logits, plain(x))
        print(sorted(wrapped.config.id2label.values()))
    """
    process = run_python(code, **hub.env, HF_HUB_CACHE=cache)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "['a', 'b', 'c']"


@pytest.mark.full
def test_commands(hub: HubServer, pusher: Client, tmp_path: Path, cache: str) -> None:
    """push, pull and verify on the command line never print the token."""
    folder, secret = str(tmp_path / "model"), "hf_topsecret"
    hub.writers.add(secret)
    pusher(f"convstem.pull('vit_nano4_convstem.cifar10', out={folder!r})")

    def command(*words: Any, status: int = 0) -> str:
        code = f"import sys\nsys.argv = ['convstem', *{words!r}]\nfrom convstem.cli.main import main\nmain()"
        process = run_python(code, **hub.env, HF_TOKEN=secret, HF_HUB_CACHE=cache)
        assert process.returncode == status, process.stderr
        assert secret not in process.stdout + process.stderr
        return process.stdout + process.stderr

    assert "Missing option '--license'" in command("push", folder, "org/x", status=2)
    pushed = command("push", folder, "org/x", "--license", "apache-2.0")
    assert "add     model.safetensors" in pushed
    assert "pushed and verified: http" in pushed
    assert "nothing to send: http" in command("push", folder, "org/x", "--license", "apache-2.0")
    assert command("pull", "org/x", "--out", str(tmp_path / "out")).strip() == str(tmp_path / "out")
    assert "ok      hashes   3 files have the hashes that the Hub lists" in command("verify", "org/x")
    assert "Error: the Hub refuses org/absent (404)" in command("verify", "org/absent", status=1)
    plan = command("publish", "--namespace", "org", "--only", "vit_nano4*", "--dry-run")
    assert plan.startswith("publish   org/vit_nano4_convstem.cifar10  weights/")
