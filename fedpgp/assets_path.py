from pathlib import Path


def asset(*parts):
    return Path(__file__).parent.joinpath("assets", *parts)
