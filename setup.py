"""Which packages there are; everything else that describes the project is in setup.cfg."""

from setuptools import find_packages, setup

# They lie beside the package in a checkout and inside it in the wheel: see storage/shipped.py.
DATA = {"alphaedit_plugin.examples": "examples", "alphaedit_plugin.hparams": "hparams"}

setup(packages=[*find_packages(include=["alphaedit_plugin*"]), *DATA], package_dir=DATA)
