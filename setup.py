"Packaging: everything is read from settings.ini, the one place for version, requirements and console scripts."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]
readme = here/"README.md"

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], author_email=cfg["author_email"], url=cfg["git_url"], license="Apache-2.0",
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"], long_description_content_type="text/markdown",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]), include_package_data=True, zip_safe=False,
    package_data={"cooper.measure": ["lmms_tasks/*", "lmms_tasks/exams/*"]},
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "flash": cfg["flash_requirements"].split(), "serve": cfg["serve_requirements"].split(),
                    "data": cfg["data_requirements"].split()},
    entry_points={"console_scripts": cfg.get("console_scripts", "").split(), "lmms_eval.models": cfg.get("lmms_eval_models", "").split()},
)
