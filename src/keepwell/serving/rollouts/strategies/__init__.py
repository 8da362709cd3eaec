"""The catalog of strategies, one file each; what a strategy is stands in ``keepwell.serving.rollouts.strategy``."""

from __future__ import annotations

from keepwell.core.catalog import Catalog

STRATEGIES = Catalog(
    "strategy",
    {
        "basic": "keepwell.serving.rollouts.strategies.basic:Basic",
        "recreate": "keepwell.serving.rollouts.strategies.recreate:Recreate",
        "blue-green": "keepwell.serving.rollouts.strategies.blue_green:BlueGreen",
        "canary": "keepwell.serving.rollouts.strategies.canary:Canary",
        "shadow": "keepwell.serving.rollouts.strategies.shadow:Shadow",
        "champion-challenger": "keepwell.serving.rollouts.strategies.champion_challenger:ChampionChallenger",
        "ab": "keepwell.serving.rollouts.strategies.ab:AB",
        "multivariate": "keepwell.serving.rollouts.strategies.multivariate:Multivariate",
        "switchback": "keepwell.serving.rollouts.strategies.switchback:Switchback",
        "bandit": "keepwell.serving.rollouts.strategies.bandit:Bandit",
    },
)
