"""Packaging of anatomask: the library ``ssl_pretrain``, its commands, and the nnU-Net plug-in folder inside it.

The repository's top-level ``nnunetv2/`` is a folder of plug-ins, not a package. A wheel ships it as
``ssl_pretrain/nnunetv2_plugins`` so that nothing of ours can ever land inside the installed ``nnunetv2``;
``ssl_pretrain.transfer.extension_folder()`` finds it in a wheel and in an editable install alike.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PLUGINS = "ssl_pretrain.nnunetv2_plugins"

setup(
    name="anatomask",
    version="0.1.0",
    description="Self-supervised pretraining for 3-D medical segmentation, on top of nnU-Net v2",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["ssl_pretrain", "ssl_pretrain.*"]), PLUGINS],
    package_dir={PLUGINS: "nnunetv2"},
    package_data={PLUGINS: ["run/*.py", "training/nnUNetTrainer/*.py"], "ssl_pretrain": ["py.typed"]},
    include_package_data=False,
    install_requires=[
        "torch>=2.4,!=2.9.*",
        "nnunetv2>=2.8.1,<2.9",
        "lightning>=2.6,<2.7,!=2.6.2,!=2.6.3",
        "batchgenerators>=0.25.1",
        "blosc2>=3.3.2",
        "SimpleITK>=2.2.1",
        "nibabel>=5.0",
        "numpy>=1.24",
        "scipy>=1.10",
        "dynamic-network-architectures>=0.4.4,<0.5",
        "matplotlib>=3.7",
        "tensorboard>=2.16",
        "tqdm>=4.57",
        "safetensors>=0.4",
        "filelock>=3.12",
        "pydantic>=2.7",
    ],
    extras_require={
        # MONAI, so that the tests of the ViT do not skip; batchgeneratorsv2, because they compare with it.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.90",
            "setuptools>=70.1",
            "monai>=1.4",
            "huggingface_hub>=0.25",
            "batchgeneratorsv2>=0.3.2",
        ],
        "monai": ["monai>=1.4"],
        "hub": ["huggingface_hub>=0.25"],
        "spconv": ["spconv-cu126>=2.3.8; platform_system == 'Linux' and platform_machine == 'x86_64'"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.90",
            "ruff>=0.15",
            "mypy>=1.18",
            "codespell>=2.3",
            "pre-commit>=3.5",
        ],
    },
    entry_points={
        "console_scripts": [
            "nnUNetv2_pretrain=ssl_pretrain.cli.pretrain:main",
            "nnUNetv2_pretrain_demo=ssl_pretrain.cli.demo:main",
            "nnUNetv2_adapt_weights=ssl_pretrain.cli.adapt_weights:main",
            "nnUNetv2_pretrain_study=ssl_pretrain.cli.pretrain_study:main",
            "nnUNetv2_preprocess_unlabeled=ssl_pretrain.cli.preprocess_unlabeled:main",
            "nnUNetv2_plan_unlabeled=ssl_pretrain.cli.plan_unlabeled:main",
            "nnUNetv2_make_collection=ssl_pretrain.cli.make_collection:main",
            "nnUNetv2_convert_openmind=ssl_pretrain.cli.convert_openmind:main",
        ]
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Healthcare Industry",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    keywords=["self-supervised learning", "medical image segmentation", "nnU-Net", "masked image modelling", "SparK"],
)
