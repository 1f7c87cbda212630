"""Makes convstem's names resolve without an import: torch calls ``install`` at the end of ``import torch``.

It must cost nothing and break nothing: only ``sys`` is imported, ``install`` never raises, and the finder answers
None for every module but the two hosts. It is its own top-level file, so that a removed ``convstem`` folder leaves a
warning behind instead of a broken ``import torch``.
"""

import sys

HOSTS = {"timm.models": "timm", "torchvision.models": "torchvision"}
"""Module whose import triggers registration -> host."""

reported = set()
"""Failures warned of: the same one, met again at the second host, is not news."""


def install():
    """Install the import hook unless ``CONVSTEM_AUTOLOAD=0``; torch calls it, by our ``torch.backends`` entry point."""
    try:
        import os

        if os.environ.get("CONVSTEM_AUTOLOAD") != "0":
            install_finder("torch autoload")
    except Exception as error:
        report(error)


def install_finder(path):
    """Put the finder first on ``sys.meta_path`` unless one is there; ``path`` says who asked, for `convstem doctor`."""
    if not any(type(finder).__name__ == "ConvStemFinder" for finder in sys.meta_path):
        sys.meta_path.insert(0, ConvStemFinder(path))


def register(host, path):
    """Register our names with a host that has just been imported; a failure is one warning."""
    try:
        from convstem.hosts.registration import register_host

        register_host(host, path)
    except Exception as error:
        report(error)


def report(error):
    """Warn once that registration failed; ``convstem doctor`` shows the details."""
    import warnings

    if str(error) in reported:
        return
    reported.add(str(error))
    warnings.warn(
        f"convstem could not register its models ({type(error).__name__}: {error}); timm and torchvision work as "
        "usual. Reinstall or uninstall convstem, or set CONVSTEM_AUTOLOAD=0 to silence this.",
        RuntimeWarning,
        stacklevel=2,
    )


class ConvStemFinder:
    """A ``sys.meta_path`` finder that wraps the loaders of ``HOSTS`` and ignores every other module."""

    def __init__(self, path):
        self.path = path

    def find_spec(self, fullname, path=None, target=None):
        """Return the host's own spec with its loader wrapped, or None."""
        if fullname not in HOSTS:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = RegisteringLoader(spec.loader, HOSTS[fullname], self.path)
                return spec
        return None


class RegisteringLoader:
    """The host's loader, followed by our registration."""

    def __init__(self, loader, host, path):
        self.loader, self.host, self.path = loader, host, path

    def create_module(self, spec):
        """Delegate to the host's loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module):
        """Run the host's module with its own loader in place, then register."""
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        register(self.host, self.path)

    def __getattr__(self, name):
        """Delegate everything else (``get_source``, ``get_resource_reader``, ...) to the host's loader."""
        return getattr(self.loader, name)
