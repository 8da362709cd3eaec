"""The alert drill: heard, or it does not pass."""

from __future__ import annotations

import numpy as np
from tests.watch.simulated import START, Inbox, Site, World, draw

from keepwell.core.clock import DAY
from keepwell.core.records.watching import Alert, Measurement
from keepwell.watch.drills import alert_drill
from keepwell.watch.health import health


def drill(site, **other):
    from keepwell.core.records.models import ModelVersion

    parts = {
        "project": site.project,
        "settings": site.settings,
        "store": site.store,
        "blobs": site.blobs,
        "channels": [site.inbox],
        "clock": site.clock,
    }
    version = site.store.get(ModelVersion, "late", 1)
    return alert_drill("late", version, **(parts | other))


def test_a_made_drift_reaches_the_channel_and_leaves_only_its_alert(tmp_path):
    site = Site(tmp_path)
    found = drill(site)
    assert found.verdict == "pass", found.message
    (alert,) = site.store.find(Alert)
    assert (alert.drill, alert.state, alert.severity) == (True, "closed", "info")
    assert site.inbox.alerts[0].drill
    assert site.store.find(Measurement) == []
    assert health("late", site.store).open_alerts == ()


def test_an_alarm_that_nobody_hears_fails_the_drill(tmp_path):
    site = Site(tmp_path)
    site.inbox.down = True
    found = drill(site)
    assert found.verdict == "fail"
    assert "Nobody answers" in found.message
    assert len(site.store.find(Alert)[0].deliveries) == 3
    assert drill(site, channels=[]).verdict == "fail"


def test_one_channel_that_hears_is_enough(tmp_path):
    site = Site(tmp_path)
    deaf = Inbox("deaf")
    deaf.down = True
    found = drill(site, channels=[deaf, site.inbox])
    assert found.verdict == "pass"
    assert found.measured["heard"] == "inbox"


def test_a_version_without_validation_rows_fails_the_drill(tmp_path):
    import msgspec

    from keepwell.core.digest import canonical
    from keepwell.core.records.models import Artefact, ModelVersion

    site = Site(tmp_path)
    bare = site.blobs.put(canonical(Artefact(files={})))
    registered = site.store.get(ModelVersion, "late", 1)
    assert registered is not None
    version = msgspec.structs.replace(registered, artefact=bare)
    found = alert_drill(
        "late",
        version,
        project=site.project,
        settings=site.settings,
        store=site.store,
        blobs=site.blobs,
        channels=[site.inbox],
        clock=site.clock,
    )
    assert found.verdict == "fail"
    assert "no labelled validation rows" in found.message


def test_monitors_that_cannot_tell_the_labels_from_their_opposite_fail_the_drill(tmp_path):
    # A model that always says one half on labels that are even: turning them around changes nothing to see.
    site = Site(tmp_path)
    rows = draw(
        np.random.default_rng(0), since=START - 21 * DAY, until=START, a_day=100, world=World()
    )
    rows.p[:] = 0.5
    rows.y[:] = np.arange(len(rows.y)) % 2
    version = site.register(2, rows)
    found = alert_drill(
        "late",
        version,
        project=site.project,
        settings=site.settings,
        store=site.store,
        blobs=site.blobs,
        channels=[site.inbox],
        clock=site.clock,
    )
    assert found.verdict == "fail"
    assert "raised no alarm of both" in found.message
