"""The control API's lists: filtered by column, each value read by its column's type."""

import asyncio

import httpx
import pytest

from keepwell.app.api.server import application
from keepwell.core.records.watching import Alert


@pytest.fixture
def ask(released):
    state = released.state()
    with state.store.transaction(actor="watcher") as transaction:
        for version in (1, 2):
            transaction.add(
                Alert(
                    id=str(version), endpoint="tumour", model="tumour", version=version, monitor="brier",
                    severity="warning", message="<script>alert(1)</script>", event_time=1, opened=1,
                )
            )  # fmt: skip

    def get(path):
        async def one():
            transport = httpx.ASGITransport(app=application(state), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await client.get(path)

        return asyncio.run(one())

    return get


def test_a_text_of_digits_is_compared_as_text_and_a_number_as_number(ask):
    assert [row["id"] for row in ask("/api/v1/alerts?id=1").json()] == ["1"]
    assert [row["id"] for row in ask("/api/v1/alerts?version=2").json()] == ["2"]


def test_a_column_that_is_not_there_or_a_value_of_the_wrong_type_is_named(ask):
    answer = ask("/api/v1/alerts?versoin=2")
    assert answer.status_code == 422
    assert "Did you mean 'version'" in answer.text
    answer = ask("/api/v1/alerts?version=two")
    assert answer.status_code == 422
    assert "version='two'" in answer.text


def test_pages_of_what_is_not_there_answer_404(ask):
    for path in ("/monitors/nobody", "/endpoints/nobody", "/models/nobody", "/releases/nobody"):
        assert ask(path).status_code == 404


def test_what_strangers_wrote_is_text_on_every_page(ask):
    page = ask("/alerts")
    assert "<script>alert(1)</script>" not in page.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
