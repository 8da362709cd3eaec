# mypy: ignore-errors
"""What MLflow's own client gets from a gateway; run by the interpreter that has MLflow: ``PORT NAMED_PORT FILE``."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import requests
import uvicorn
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types.schema import ColSpec, Schema

CODE = """
import mlflow


class Ten(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        assert list(model_input.columns) == ["x", "flag", "dep delay"]
        return model_input["x"].fillna(100.0).to_numpy() + 10


mlflow.models.set_model(Ten())
"""
ROW = {"x": 1.0, "flag": True, "dep delay": 2.0}
SPLIT = {"columns": [*ROW, "more"], "data": [[1.0, True, 2.0, "z"]]}
JSON = "application/json"
ODD = {
    "records": ({"dataframe_records": [{**ROW, "more": "a", "besides": None}]}, JSON),
    "in one record": ({"dataframe_records": [ROW, {**ROW, "more": 1}]}, JSON),
    "lists": ({"dataframe_records": [{**ROW, "more": [1, 2]}]}, JSON),
    "split": ({"dataframe_split": SPLIT}, JSON),
    "another order": (
        {"dataframe_split": {"columns": ["more", *reversed(ROW)], "data": [["z", 2.0, True, 5.0]]}}, JSON,
    ),
    "twice": ({"dataframe_split": {"columns": [*ROW, "m", "m"], "data": [[1.0, True, 2.0, 3, 4]]}}, JSON),
    "twice a known one": ({"dataframe_split": {"columns": [*ROW, "x"], "data": [[1.0, True, 2.0, 3]]}}, JSON),
    "instances": ({"instances": [{**ROW, "more": 1}]}, JSON),
    "columns": ({"inputs": {**{name: [value] for name, value in ROW.items()}, "more": [7]}}, JSON),
    "csv": ("x,flag,dep delay,more\n1,True,2,z\n", "text/csv"),
    "a field": ({"dataframe_records": [ROW], "more": 1}, JSON),
}  # fmt: skip
"""What has columns that no signature names."""


def asked(url: str, body: object, kind: str) -> list:
    content = body if isinstance(body, str) else json.dumps(body)
    done = requests.post(f"{url}/invocations", data=content, headers={"Content-Type": kind})
    said = done.json()
    return [done.status_code, said.get("predictions"), said.get("ignored")]


@contextmanager
def real_server(folder: Path) -> Iterator[str]:
    """MLflow's own scoring server with a model of the same columns."""
    (folder / "ten.py").write_text(CODE)
    kinds = {"x": "double", "flag": "boolean", "dep delay": "double"}
    inputs = Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()])
    signature = ModelSignature(inputs=inputs, outputs=Schema([ColSpec("double")]))
    mlflow.pyfunc.save_model(
        folder / "ten", python_model=str(folder / "ten.py"), signature=signature, pip_requirements=["mlflow"]
    )  # fmt: skip
    app = scoring_server.init(mlflow.pyfunc.load_model(str(folder / "ten")))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    running = threading.Thread(target=server.run)
    running.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    running.join()


def main() -> None:
    port, named_port, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    client = ScoringServerClient("127.0.0.1", port)
    client.wait_server_ready(timeout=60)
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
    found["frame ignored"] = answer["ignored"]
    found["array"] = client.invoke(np.array([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0]]))["predictions"]
    named = client.invoke(
        frame.assign(user=["ann", "bo"]), params={"ids": ["mlflow-c", "mlflow-d"]}
    )
    found["with units"], found["units ignored"] = named["predictions"], named["ignored"]

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
    with real_server(Path(place).parent) as real:
        for side, url in (("ours", client.url_prefix), ("real", real)):
            found[side] = {name: asked(url, *sent) for name, sent in ODD.items()}
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
