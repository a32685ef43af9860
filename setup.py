"""Build with setuptools; what the package needs is read from settings.ini, its one place."""
from configparser import ConfigParser
from setuptools import find_packages, setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def lines(key):
    return [line for line in settings.get(key, "").splitlines() if line.strip()]


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    author=settings["author"],
    license="Apache-2.0",
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["fb_marketplace*"]),
    install_requires=lines("requirements"),
    extras_require={extra: lines(f"{extra}_requirements") for extra in ("dev", "ray")},
    entry_points={
        "console_scripts": [settings["console_scripts"]],
        "nbdev": ["fb_marketplace=fb_marketplace._modidx:d"],
    },
)
