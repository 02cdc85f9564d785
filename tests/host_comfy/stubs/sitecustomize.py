"""Lets ComfyUI start on a machine without torchvision and torchaudio: their names import, using one raises.

Python imports a module of this name at its start when the folder is on PYTHONPATH. The finder stands last in line, so
the real packages win wherever they are installed.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

ABSENT = ("torchvision", "torchaudio")


class AbsentModule(ModuleType):
    """A module in which every name is a class that cannot be created."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_arguments, **_options):
            raise NotImplementedError(f"{self.__name__}.{name} is not installed on this machine")

        return type(name, (), {"__init__": refuse, "__module__": self.__name__})


class AbsentFinder:
    """Supplies an `AbsentModule` for the packages in `ABSENT` and for everything below them."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Return a package spec for the names that this finder stands in for, else None."""
        return ModuleSpec(name, cls, is_package=True) if name.partition(".")[0] in ABSENT else None

    @staticmethod
    def create_module(spec):
        """Return the empty module; it says version 0 to whoever asks."""
        module = AbsentModule(spec.name)
        module.__version__ = "0.0.0"
        return module

    @staticmethod
    def exec_module(module):
        """Nothing to run."""


sys.meta_path.append(AbsentFinder)
