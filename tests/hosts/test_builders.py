"""torchvision gets one function and one enum per architecture, importable from their stated module."""

import pickle

import torchvision

from convstem.hosts import convstem_torchvision as ours
from convstem.hosts.convstem_torchvision import builders


def test_they_are_made_once_and_pickled_by_name() -> None:
    functions, enums = builders()
    again, enums_again = builders()
    for name in ("vit_nano_4_convstem", "vit_b_16_convstem"):
        function, enum = functions[name], enums[name]
        assert function is again[name] is getattr(ours, name) and enum is enums_again[name]
        assert pickle.loads(pickle.dumps(function)) is function
        assert pickle.loads(pickle.dumps(enum.DEFAULT)) is enum.DEFAULT
        assert getattr(torchvision.models, enum.__name__) is enum
        assert torchvision.models.get_model_builder(name) is function
