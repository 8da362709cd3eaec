# mypy: ignore-errors
"""What MLflow's own client gets from a gateway; run by the interpreter that has MLflow: ``PORT NAMED_PORT FILE``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import requests
from mlflow.pyfunc.scoring_server.client import ScoringServerClient


def main() -> None:
    port, named_port, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    client = ScoringServerClient("127.0.0.1", port)
    client.wait_server_ready(timeout=10)
    client.ping()
    frame = pd.DataFrame(
        {
            "dep delay": [5.0, np.nan],
            "x": [1.0, np.nan],
            "flag": [True, False],
            "besides": ["a", "b"],
        }
    )
    found = {"version": client.get_version()}
    answer = client.invoke(frame, params={"ids": ["mlflow-a", "mlflow-b"]})
    found["frame"] = answer.get_predictions()[0].tolist()
    found["array"] = client.invoke(np.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))["predictions"]
    found["with units"] = client.invoke(
        frame.assign(user=["ann", "bo"]), params={"ids": ["mlflow-c", "mlflow-d"]}
    )["predictions"]

    def post(content: str, kind: str = "application/json", path: str = "/invocations") -> list:
        done = requests.post(
            f"{client.url_prefix}{path}", data=content.encode(), headers={"Content-Type": kind}
        )
        return [done.status_code, done.json()]

    found["csv"] = post(frame.to_csv(index=False), "text/csv")
    found["csv with index"] = post(frame.to_csv(), "text/csv; charset=utf-8")
    split = frame.to_json(orient="split")
    records = frame.to_json(orient="records")
    found["split"] = post(f'{{"dataframe_split": {split}}}')
    found["records"] = post(f'{{"dataframe_records": {records}}}')
    found["instances"] = post(f'{{"instances": {records}}}')
    # The client itself fails on a dict of arrays (3.17.2); this is what it would send.
    arrays = {
        "x": np.array([1.0, 2.0]),
        "flag": np.array([[1], [0]]),
        "dep delay": np.array([0, 0]),
    }
    columns = {name: array.tolist() for name, array in arrays.items()}
    found["columns"] = post(json.dumps({"inputs": columns}))
    found["named"] = post(f'{{"dataframe_split": {split}}}', path="/v1/endpoints/only/invocations")
    try:
        client.invoke(frame.drop(columns="x"))
    except Exception as error:  # noqa: BLE001 - the client raises nothing finer
        found["missing"] = str(error)
    many = ScoringServerClient("127.0.0.1", named_port)
    many.ping()
    try:
        many.invoke(frame)
    except Exception as error:  # noqa: BLE001 - the client raises nothing finer
        found["which"] = str(error)
    many.url_prefix += "/v1/endpoints/words"
    words = pd.DataFrame({"word": ["abc", None], "number": [1, 2], "flag": [True, False]})
    found["words"] = many.invoke(words)["predictions"]
    found["words as csv"] = requests.post(
        f"{many.url_prefix}/invocations",
        data=words.to_csv(index=False),
        headers={"Content-Type": "text/csv"},
    ).json()["predictions"]
    many.url_prefix = many.url_prefix.replace("words", "kinds")
    found["classes"] = many.invoke(pd.DataFrame({"p": [0.5]}))["predictions"]
    Path(place).write_text(json.dumps(found))


main()
