"""Flower's own strategies, as they are."""

from flwr.serverapp import strategy

from strategies.aggregation.base import register

register("fedavg")(strategy.FedAvg)
register("fedadam")(strategy.FedAdam)
register("fedyogi")(strategy.FedYogi)
register("fedadagrad")(strategy.FedAdagrad)
register("fedmedian")(strategy.FedMedian)
register("fedtrimmedavg")(strategy.FedTrimmedAvg)
register("krum")(strategy.Krum)
register("multikrum")(strategy.MultiKrum)
