"""Makes convstem's names resolve without an import: torch calls ``install`` at the end of ``import torch``.

It must cost nothing and break nothing. It imports only the builtin modules ``sys`` and ``_thread``, ``install`` never
raises, and the finder returns None for every module but the two hosts. It is its own top-level file, so that deleting
the ``convstem`` folder causes a warning, not a broken ``import torch``.
"""

import _thread
import sys

HOSTS = {"timm.models": "timm", "torchvision.models": "torchvision"}
"""Module whose import triggers registration -> host."""

reported = set()
"""Failures already warned about: the second host often fails in the same way."""


def install():
    """Install the import hook unless ``CONVSTEM_AUTOLOAD=0``; our ``torch.backends`` entry point, called by torch."""
    try:
        import os

        if os.environ.get("CONVSTEM_AUTOLOAD") != "0":
            install_finder("torch autoload")
    except Exception as error:
        report(error)


def install_finder(path):
    """Put the finder first on ``sys.meta_path``, once; ``path`` says who asked, for `convstem doctor`."""
    there = [finder for finder in sys.meta_path if type(finder).__name__ == "ConvStemFinder"]
    put_first(there[0] if there else ConvStemFinder(path))


def put_first(finder):
    """Put a finder first: hooks such as jaxtyping's ask no finder behind them for a module that they handle."""
    if not sys.meta_path or sys.meta_path[0] is not finder:
        sys.meta_path[:] = [finder, *(other for other in sys.meta_path if other is not finder)]


def register(host, path):
    """Register our names with a host that was just imported; a failure is only a warning."""
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
    sentence = (
        f"convstem could not register its models ({type(error).__name__}: {error}); timm and torchvision work as "
        "usual. Reinstall or uninstall convstem, or set CONVSTEM_AUTOLOAD=0 to silence this."
    )
    try:
        warnings.warn(sentence, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # with -W error it would break the import of the host
        say(sentence)


def say(sentence):
    """Print a warning to standard error; used where warnings are errors."""
    if sys.stderr is not None:  # it is None under pythonw
        sys.stderr.write(f"RuntimeWarning: {sentence}\n")


class ConvStemFinder:
    """A ``sys.meta_path`` finder that wraps the loaders of ``HOSTS`` and ignores every other module."""

    def __init__(self, path):
        self.path = path
        self.asking = set()  # threads that are in ``wrapped``

    def find_spec(self, fullname, path=None, target=None):
        """Return the host's own spec with its loader wrapped, or None."""
        if any(finder is self for finder in sys.meta_path):  # if not, somebody removed it and still calls it
            put_first(self)
        thread = _thread.get_ident()
        if fullname not in HOSTS or thread in self.asking:  # a finder that we ask may ask all others, us included
            return None
        self.asking.add(thread)
        try:
            return self.wrapped(fullname, path, target)
        finally:
            self.asking.discard(thread)

    def wrapped(self, fullname, path, target):
        """Return the spec of the first other finder that has one, with its loader wrapped, or None."""
        for finder in list(sys.meta_path):
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
        """Restore the host's own loader, run the module, then register."""
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        register(self.host, self.path)

    def __getattr__(self, name):
        """Delegate everything else (``get_source``, ``get_resource_reader``, ...) to the host's loader."""
        if "loader" not in vars(self):  # copy and pickle ask before the attributes are set
            raise AttributeError(name)
        return getattr(self.loader, name)
