# ruff: noqa: F811 - pytest fixtures are arguments of the same name
"""Through a mirror, a listing without hashes is no damage, but a flipped byte still is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import convstem
from tests.support.hub_server import Client, Fault, HubServer
from tests.support.hub_server.fixtures import cache, client, hub, server  # noqa: F401
from tests.support.hub_server.mirror import Mirror, olah_program

CALLS = {
    "load": "convstem.load({repo!r})",
    "create_model": "timm.create_model('hf-hub:' + {repo!r}, pretrained=True)",
    "pull": "convstem.pull({repo!r})",
    "verify": "report = convstem.verify({repo!r})\nassert report.ok, report.checks",
    "transplant": "convstem.transplant('hf-hub:' + {patchify!r})",
}


def put_models(hub: HubServer, folder: Path, name: str) -> dict[str, str]:
    """Commit one of our models and a patchify model. Return their names, which are new because mirrors cache."""
    import timm

    names = {"repo": f"org/{name}-ours", "patchify": f"org/{name}-patchify"}
    convstem.pull("vit_nano4_convstem.cifar10", out=folder / "ours")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3)
    timm.models.save_for_hf(model, folder / "patchify", safe_serialization=True)
    for repo, files in zip(names.values(), ("ours", "patchify"), strict=True):
        hub.store.create(repo)
        hub.store.commit(repo, "main", {path.name: path.read_bytes() for path in (folder / files).iterdir()})
    return names


@pytest.fixture(scope="module")
def mirrored(
    server: HubServer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Client]:
    """A client of a mirror of the Hub."""
    cache = getattr(request.config, "cache", None)  # pytest may run without it
    program = olah_program(Path(str(cache.mkdir("olah"))) if cache else tmp_path_factory.mktemp("olah"))
    if program is None:
        pytest.skip("olah could not be installed: no package index can be reached")
    folder = tmp_path_factory.mktemp("mirror")
    mirror = Mirror(program, server, folder)
    process = Client(**mirror.env, HF_HOME=str(folder / "home"))
    process("import convstem, timm, torchvision")
    yield process
    process.close()
    mirror.close()


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_a_mirror_is_as_good_as_the_hub(call: str, hub: HubServer, mirrored: Client, tmp_path: Path) -> None:
    names = put_models(hub, tmp_path, call.replace("_", "-"))
    outcome = mirrored(CALLS[call].format(**names))
    assert outcome.error is None, outcome.output
    assert [text for text in outcome.warnings if "compared" in text] == []  # the ETags are hashes


@pytest.mark.full
@pytest.mark.parametrize("call", CALLS)
def test_a_flipped_byte_is_never_silent(call: str, hub: HubServer, mirrored: Client, tmp_path: Path) -> None:
    names = put_models(hub, tmp_path, f"flipped-{call.replace('_', '-')}")
    hub.arm(Fault(flip=-2000, times=99))
    outcome = mirrored(CALLS[call].format(**names))
    assert "model.safetensors" in str(outcome.error)
    assert "is damaged after two downloads: expected hash" in str(outcome.error)


def hide_hashes(hub: HubServer, etag: bool) -> None:
    """Remove the hashes from the Hub's listing and, unless ``etag``, from its ETags."""
    hub.silent = True
    names = ("config.json", "model.safetensors", "README.md")
    hidden = [
        Fault(origin="hub", method="HEAD", path=name, times=99, replace=(("ETag", name), ("X-Linked-Etag", name)))
        for name in names
    ]
    hub.arm(*([] if etag else hidden))


@pytest.mark.full
@pytest.mark.parametrize("etag", [True, False])
def test_a_listing_without_hashes(etag: bool, hub: HubServer, client: Client, cache: str, tmp_path: Path) -> None:
    names = put_models(hub, tmp_path, "silent")
    hide_hashes(hub, etag)
    client(f"import convstem, timm, huggingface_hub.constants as c\nc.HF_HUB_CACHE = {cache!r}")
    outcome = client(f"result = float(convstem.load({names['repo']!r}).head.weight.detach().double().sum())")
    verified = client(f"result = [c.ok for c in convstem.verify({names['repo']!r}).checks if c.name == 'hashes']")
    hub.silent = False
    right = convstem.load(tmp_path / "ours").head.weight.detach().double().sum()
    assert (outcome.error, outcome.value) == (None, float(right))
    said = [text for text in outcome.warnings if "could not be compared with the Hub" in text]
    assert len(said) == (0 if etag else 1)
    assert verified.value == [etag]
