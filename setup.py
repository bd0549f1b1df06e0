"""Packaging for xrddiff: every value comes from `settings.ini`, which nbdev reads too."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
cfg = ConfigParser(delimiters=["="], interpolation=None)
cfg.read(HERE / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]


class BuildWithNotebooks(build_py):
    """Put the run notebooks, the tutorials and the SLURM folder inside the package that is built.

    A checkout keeps them at the top (`nbs/runs`, `nbs/tutorials`, `slurm`), where people look; an
    installed wheel reads the same files through `importlib.resources` from `xrddiff/_notebooks`,
    `xrddiff/_tutorials` and `xrddiff/_slurm`.
    """

    def run(self):
        super().run()
        for source, target in (("nbs/runs", "_notebooks"), ("nbs/tutorials", "_tutorials"), ("slurm", "_slurm")):
            for path in sorted((HERE / source).rglob("*")):
                if path.is_file() and ".ipynb_checkpoints" not in path.parts:
                    out = Path(self.build_lib) / "xrddiff" / target / path.relative_to(HERE / source)
                    self.mkpath(str(out.parent))
                    self.copy_file(str(path), str(out))


def words(name: str) -> list[str]:
    return cfg.get(name, "").split()


NAMES = (
    "kernel",
    "sweeps",
    "workers",
    "remote",
    "s3",
    "lab",
    "trackers",
    "onnx",
    "stream2",
    "io",
    "imgcif",
    "real",
    "gpu",
    "dev",
)
EXTRAS = {name: words(f"{name}_requirements") for name in NAMES}

readme = HERE / "README.md"
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0 AND LGPL-2.1-or-later",  # the second one is that of a measured frame in data/samples
    license_files=["LICENSE", "xrddiff/data/samples/NOTICE.md", "xrddiff/data/samples/LGPL-2.1.txt"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": cfg["git_url"] + "/blob/main/CHANGELOG.md",
        "Issues": cfg["git_url"] + "/issues",
    },
    keywords=cfg["keywords"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=["xrddiff", "xrddiff.*"]),
    package_data={
        "xrddiff": [
            "py.typed",
            "core/registry.json",
            "config/conf/**/*.yaml",
            "config/conf/*.yaml",
            "data/samples/*",
            "judge/weights/*",
            "judge/pretrained/**/*",
            "app/labextension/**/*",
            "**/*.j2",
            "**/*.css",
            "app/widgets/*.js",
        ],
    },
    cmdclass={"build_py": BuildWithNotebooks},
    install_requires=words("requirements"),
    extras_require=EXTRAS | {"all": sorted({r for e, own in EXTRAS.items() if e not in ("dev", "gpu") for r in own})},
    entry_points={"console_scripts": words("console_scripts")},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Physics",
    ],
    zip_safe=False,
)
