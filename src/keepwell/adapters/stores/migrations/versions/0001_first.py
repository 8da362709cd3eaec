"""The first schema: a table for each noun, the audit trail, and the counter of changes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "activations",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("waits_for", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("policy", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("requested_by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("strategy", sa.Text(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_activations_model_version", "activations", ["model", "version"], unique=False
    )
    op.create_index("ix_activations_state", "activations", ["state"], unique=False)
    op.create_table(
        "alerts",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("monitor", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("severity", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("message", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("event_time", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("opened", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("drill", sa.Boolean(), autoincrement=False, nullable=False),
        sa.Column("deliveries", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("closed", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_alerts_endpoint_opened", "alerts", ["endpoint", "opened"], unique=False)
    op.create_index("ix_alerts_state", "alerts", ["state"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("alias", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("model", "alias"),
    )
    op.create_table(
        "approvals",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scope", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("bound", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("envelope", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("expires", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("withdrawn", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_approvals_model_version", "approvals", ["model", "version"], unique=False)
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("before", sa.Text(), nullable=False),
        sa.Column("after", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"], unique=False)
    op.create_table(
        "catalogue",
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("purpose", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("risk", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("task", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("features", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("sources", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("card", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("updated", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("model"),
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("alert", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("event_time", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("made", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("result", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_decisions_endpoint_event_time", "decisions", ["endpoint", "event_time"], unique=False
    )
    op.create_index("ix_decisions_state", "decisions", ["state"], unique=False)
    op.create_table(
        "endpoints",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("unit", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("time", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("log", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("label_delay", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "evidence",
        sa.Column("envelope", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("subject", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("subject_digest", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("predicate", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("procedure", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("verdict", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("signer", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("envelope"),
    )
    op.create_index("ix_evidence_procedure_step", "evidence", ["procedure", "step"], unique=False)
    op.create_index("ix_evidence_subject_created", "evidence", ["subject", "created"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("token", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("expires", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "ledger",
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("end", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("unit", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("decisions", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("labelled", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("baseline", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("difference", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("low", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("high", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("sum_squares", sa.Float(precision=53), autoincrement=False, nullable=False),
        sa.Column("computed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "version", "start"),
    )
    op.create_table(
        "measurements",
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("monitor", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("end", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("rows", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("low", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("high", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("reference", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("limit", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("score", sa.Float(precision=53), autoincrement=False, nullable=True),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("message", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("computed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "monitor", "version", "start"),
    )
    op.create_index(
        "ix_measurements_endpoint_start", "measurements", ["endpoint", "start"], unique=False
    )
    op.create_table(
        "model_versions",
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("candidate", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("artefact", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("run", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("training_set", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("code", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("signature", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("author", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("description", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("tags", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("renews", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("updated", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("model", "version"),
    )
    op.create_index("ix_model_versions_run", "model_versions", ["run"], unique=False)
    op.create_index("ix_model_versions_state", "model_versions", ["state"], unique=False)
    op.create_table(
        "models",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("description", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("tags", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("updated", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("latest", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "policies",
        sa.Column("content", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("limits", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("content"),
    )
    op.create_table(
        "releases",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("waits_for", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("policy", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("requested_by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_releases_model_version", "releases", ["model", "version"], unique=False)
    op.create_index("ix_releases_state", "releases", ["state"], unique=False)
    op.create_table(
        "replays",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("since", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("until", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("sent", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("acknowledged", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("failed", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("retried", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("outcomes", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("strategy", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("champion", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("challenger", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("settings", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("memory", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("evidence", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("since", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_rollouts_endpoint_state", "rollouts", ["endpoint", "state"], unique=False)
    op.create_table(
        "signing_keys",
        sa.Column("keyid", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("public", sa.LargeBinary(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revoked", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("keyid"),
    )
    op.create_table(
        "snapshots",
        sa.Column("content", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("as_of", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("since", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("until", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("rows", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("columns", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("code", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("expectations", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("content"),
    )
    op.create_index("ix_snapshots_source_created", "snapshots", ["source", "created"], unique=False)
    op.create_table(
        "step_results",
        sa.Column("procedure", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("step", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("verdict", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("results", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("evidence", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("procedure", "step"),
    )
    op.create_index(
        "ix_step_results_model_version", "step_results", ["model", "version"], unique=False
    )
    op.create_table(
        "traffic_plans",
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("arms", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("mirrors", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("fallback", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("salt", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("endpoint", "revision"),
    )
    op.create_table(
        "training_sets",
        sa.Column("content", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("snapshots", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("views", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("as_of", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("since", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("until", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("rows", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("columns", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("content"),
    )
    op.create_index(
        "ix_training_sets_model_created", "training_sets", ["model", "created"], unique=False
    )
    op.create_table(
        "users",
        sa.Column("name", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("roles", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("token_hash", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "watermarks",
        sa.Column("endpoint", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("event_time", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cursor", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("predictions", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("outcomes", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("updated", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("endpoint"),
    )
    op.create_table(
        "work",
        sa.Column("id", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("subject", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("args", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("requested_by", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("state", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("progress", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("result", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("error", sa.Text(), autoincrement=False, nullable=False),
        sa.Column("created", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("started", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("ended", sa.BigInteger(), autoincrement=False, nullable=True),
        sa.Column("revision", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_work_state_created", "work", ["state", "created"], unique=False)
    op.create_index("ix_work_subject", "work", ["subject"], unique=False)
    op.execute("INSERT INTO changes (id, number) VALUES (1, 0)")


def downgrade() -> None:
    """Drop the tables."""
    op.drop_index("ix_work_subject", table_name="work")
    op.drop_index("ix_work_state_created", table_name="work")
    op.drop_table("work")
    op.drop_table("watermarks")
    op.drop_table("users")
    op.drop_index("ix_training_sets_model_created", table_name="training_sets")
    op.drop_table("training_sets")
    op.drop_table("traffic_plans")
    op.drop_index("ix_step_results_model_version", table_name="step_results")
    op.drop_table("step_results")
    op.drop_index("ix_snapshots_source_created", table_name="snapshots")
    op.drop_table("snapshots")
    op.drop_table("signing_keys")
    op.drop_index("ix_rollouts_endpoint_state", table_name="rollouts")
    op.drop_table("rollouts")
    op.drop_table("replays")
    op.drop_index("ix_releases_state", table_name="releases")
    op.drop_index("ix_releases_model_version", table_name="releases")
    op.drop_table("releases")
    op.drop_table("policies")
    op.drop_table("models")
    op.drop_index("ix_model_versions_state", table_name="model_versions")
    op.drop_index("ix_model_versions_run", table_name="model_versions")
    op.drop_table("model_versions")
    op.drop_index("ix_measurements_endpoint_start", table_name="measurements")
    op.drop_table("measurements")
    op.drop_table("ledger")
    op.drop_table("leases")
    op.drop_index("ix_evidence_subject_created", table_name="evidence")
    op.drop_index("ix_evidence_procedure_step", table_name="evidence")
    op.drop_table("evidence")
    op.drop_table("endpoints")
    op.drop_index("ix_decisions_state", table_name="decisions")
    op.drop_index("ix_decisions_endpoint_event_time", table_name="decisions")
    op.drop_table("decisions")
    op.drop_table("changes")
    op.drop_table("catalogue")
    op.drop_index("ix_audit_subject", table_name="audit")
    op.drop_table("audit")
    op.drop_index("ix_approvals_model_version", table_name="approvals")
    op.drop_table("approvals")
    op.drop_table("aliases")
    op.drop_index("ix_alerts_state", table_name="alerts")
    op.drop_index("ix_alerts_endpoint_opened", table_name="alerts")
    op.drop_table("alerts")
    op.drop_index("ix_activations_state", table_name="activations")
    op.drop_index("ix_activations_model_version", table_name="activations")
    op.drop_table("activations")
