"""What is known of public data before they are there: classes, images, terms.

Counts: of the splits that the readers take where CoOp's list is there (KaiyangZhou/CoOp), else of
the official ones; of the pages that the readers name.
"""

from dataclasses import dataclass

ON_ITS_PAGE = "said on its page"


@dataclass(frozen=True)
class Facts:
    """Of a public data set.

    Attributes:
        classes: that it has.
        train, test: images; no training images: it is only tested on.
        licence: its terms.
    """

    classes: int
    train: int
    test: int
    licence: str = ON_ITS_PAGE


RESEARCH = "non-commercial research (ImageNet's terms)"

FACTS = {
    "oxford_pets": Facts(37, 2944, 3669, "CC BY-SA 4.0"),
    "flowers102": Facts(102, 4093, 2463),
    "dtd": Facts(47, 2820, 1692, "research"),
    "caltech101": Facts(100, 4128, 2465, "CC BY 4.0"),
    "food101": Facts(101, 50500, 30300, "in its license_agreement.txt"),
    "cifar10": Facts(10, 50000, 10000),
    "cifar100": Facts(100, 50000, 10000),
    "domainnet": Facts(345, 409832, 176743, "fair use (ai.bu.edu/M3SDA)"),
    "domainnet10": Facts(10, 12000, 5200, "fair use (ai.bu.edu/M3SDA)"),
    "office_caltech10": Facts(10, 2026, 507),
    "eurosat": Facts(10, 13500, 8100),
    "fgvc_aircraft": Facts(100, 3334, 3333),
    "stanford_cars": Facts(196, 6509, 8041),
    "ucf101": Facts(101, 7639, 3783),
    "sun397": Facts(397, 15880, 19850),
    "imagenet": Facts(1000, 1_281_167, 50_000, RESEARCH),
    "imagenetv2": Facts(1000, 0, 10_000),
    "imagenet_sketch": Facts(1000, 0, 50_889),
    "imagenet_a": Facts(200, 0, 7_500),
    "imagenet_r": Facts(200, 0, 30_000),
    "tiny_imagenet": Facts(200, 100_000, 10_000, RESEARCH),
    "office_home": Facts(65, 12_470, 3_118),
    "fed_isic2019": Facts(8, 18_597, 4_650, "CC BY-NC 4.0"),
    "camelyon17": Facts(2, 410_359, 45_595, "CC0"),
    "flair": Facts(17, 343_262, 85_816, "CC BY-NC 4.0"),
    "pacs": Facts(7, 8_977, 9_991),
}
"""By the name of the reader. domainnet10: what ten of 345 classes have on average;
office_caltech10, office_home and flair: four fifths and one fifth of all; camelyon17: nine tenths
and one."""


@dataclass(frozen=True)
class WeightsFacts:
    """Of a model's weights.

    Attributes:
        size: of the download.
        licence: their terms.
    """

    size: str
    licence: str


WEIGHTS = {
    "vit_b16": WeightsFacts("0.6 GB (OpenAI's archive: 0.35 GB)", "MIT"),
    "vit_b32": WeightsFacts("0.6 GB (OpenAI's archive: 0.35 GB)", "MIT"),
    "vit_l14": WeightsFacts("1.7 GB (OpenAI's archive: 0.93 GB)", "MIT"),
    "rn50": WeightsFacts("0.4 GB (OpenAI's archive: 0.26 GB)", "MIT"),
    "vit_b16_laion": WeightsFacts("0.6 GB", "MIT"),
    "vit_b32_laion": WeightsFacts("0.6 GB", "MIT"),
    "vit_l14_laion": WeightsFacts("1.7 GB", "MIT"),
    "vit_b16_dfn": WeightsFacts("0.6 GB", "Apple's, on their page"),
    "vit_l14_dfn": WeightsFacts("1.7 GB", "Apple's, on their page"),
}
"""By the short name of the model."""
