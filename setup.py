"""What pyproject.toml cannot express: two folders of the top level are inside the package in the wheel."""

from setuptools import find_packages, setup

SHIPPED = ("ds_configs", "recipes")

setup(
    packages=[*find_packages(include=["cromic_ds*"]), *(f"cromic_ds.{name}" for name in SHIPPED)],
    package_dir={f"cromic_ds.{name}": name for name in SHIPPED},
    package_data={
        "cromic_ds": ["py.typed"],
        "cromic_ds.ds_configs": ["*.json"],
        "cromic_ds.recipes": ["*.yaml"],
        "cromic_ds.tools.rating": ["page.*"],
    },
)
