"""A trunk at another size has the counts of the timm architecture measured at that size."""

from convstem.registry import catalog
from convstem.registry.records import macs, num_params

NAMES = {size: f"vit_base_patch16_{size}_convstem" for size in (224, 384)}


def test_a_trunk_at_the_size_of_another_name() -> None:
    small, large = (catalog.rule_trunks()[name] for name in NAMES.values())
    found = catalog.sized(small, large.num_classes, 384)
    assert found is not None
    assert (found.name, found.img_size) == (small.name, 384)
    assert (num_params(found), macs(found)) == (num_params(large), macs(large))
    assert macs(small) < macs(large)  # negative control
    assert catalog.sized(small, small.num_classes, 224) == small
    assert catalog.sized(small, small.num_classes, 17) is None


def test_another_head() -> None:
    spec = catalog.rule_trunks()[NAMES[224]]
    found = catalog.sized(spec, spec.num_classes + 10, 224)
    assert found is not None
    assert num_params(found) == num_params(spec) + 10 * (spec.embed_dim + 1)
