"""The catalog of strategies, one file each; what a strategy is stands in ``keepwell.serving.strategy``."""

from __future__ import annotations

from keepwell.core.catalog import Catalog

STRATEGIES = Catalog(
    "strategy",
    {
        "basic": "keepwell.serving.strategies.basic:Basic",
        "recreate": "keepwell.serving.strategies.recreate:Recreate",
        "blue-green": "keepwell.serving.strategies.blue_green:BlueGreen",
        "canary": "keepwell.serving.strategies.canary:Canary",
        "shadow": "keepwell.serving.strategies.shadow:Shadow",
        "champion-challenger": "keepwell.serving.strategies.champion_challenger:ChampionChallenger",
        "ab": "keepwell.serving.strategies.ab:AB",
        "multivariate": "keepwell.serving.strategies.multivariate:Multivariate",
        "bandit": "keepwell.serving.strategies.bandit:Bandit",
    },
)
