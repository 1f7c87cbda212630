"""Steps are recorded in a pretrained cfg's notes in order, and removed."""

from types import SimpleNamespace
from typing import Any

from convstem.hub.config import LOADED, TUNED, Step, add, forget, record, steps

SOURCE = Step(LOADED, f"org/m@{'1' * 40}")


def model(**cfg: Any) -> Any:
    return SimpleNamespace(pretrained_cfg={"architecture": "vit", **cfg}, default_cfg=None)


def test_steps_are_kept_beside_the_notes_of_others() -> None:
    one = model(notes=("of somebody else",))
    record(one, [SOURCE])
    assert steps(one.pretrained_cfg) == (SOURCE,)
    assert one.pretrained_cfg["notes"][0] == "of somebody else" and len(one.pretrained_cfg["notes"]) == 2
    assert one.default_cfg is one.pretrained_cfg and one.pretrained_cfg["architecture"] == "vit"
    add(one, Step(TUNED))
    assert steps(one.pretrained_cfg) == (SOURCE, Step(TUNED))


def test_what_other_weights_had_is_forgotten() -> None:
    one = model(description="of those weights", license="mit", notes=("of somebody else",))
    add(one, SOURCE)
    forget(one)
    assert one.pretrained_cfg == {"architecture": "vit", "notes": ("of somebody else",)}
    alone = model()
    add(alone, SOURCE)
    forget(alone)
    assert alone.pretrained_cfg == {"architecture": "vit"}


def test_in_words() -> None:
    assert str(SOURCE) == f"{LOADED} org/m at commit {'1' * 40}"
    assert str(Step(LOADED, "org/m")) == f"{LOADED} org/m"
    assert str(Step(TUNED)) == TUNED
    assert (SOURCE.repo_id, Step(LOADED, "vit.tag").repo_id) == ("org/m", None)
