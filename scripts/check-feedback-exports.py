"""Loads exports of feedback as trainers do: Hugging Face datasets reads each file, and its columns and types are those
that TRL's documentation names for the format. Where TRL itself is installed, its own functions look at the rows too.

Usage: check-feedback-exports.py DIR, with files FORMAT.jsonl and FORMAT-details.jsonl.
"""

import pathlib
import sys

import datasets

try:
    from trl.data_utils import is_conversational, maybe_extract_prompt
except ImportError as missing:
    print(f"skipped: TRL's own functions ({missing})")
    is_conversational = None

COLUMNS = {
    "kto": {"prompt", "completion", "label"},
    "dpo": {"prompt", "chosen", "rejected"},
    "sft": {"prompt", "completion"},
    "grpo": None,  # `prompt`, and anything that is not the trainer's own
    "bedrock": {"messages", "reference_answer", "message_id", "evidence_ids"},
    "langfuse": {"id", "traceId", "name", "value", "dataType", "comment", "metadata"},
}
# Names under which GRPOTrainer hands its own values to reward functions.
RESERVED = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments"}


def conversation(value, roles):
    assert isinstance(value, list) and value, value
    for message in value:
        assert set(message) == {"role", "content"}, message
        assert message["role"] in roles and isinstance(message["content"], str), message


def check(name, path, details):
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))
    assert len(rows) > 0, f"{path}: no rows"
    extra = {"millrace"} if details and name != "langfuse" else set()
    columns = set(rows.column_names)
    if name == "grpo":
        assert "prompt" in columns and not columns & RESERVED, columns
    else:
        assert columns == COLUMNS[name] | extra, (columns, COLUMNS[name] | extra)
    for row in rows:
        for column in ("prompt", "messages"):
            if column in row:
                conversation(row[column], {"system", "user", "assistant"})
        for column in ("completion", "chosen", "rejected"):
            if column in row:
                conversation(row[column], {"assistant"})
        if name == "kto":
            assert isinstance(row["label"], bool)
        if name == "langfuse":
            assert row["value"] in (0, 1) and row["dataType"] == "BOOLEAN"
        if is_conversational and name in ("kto", "dpo", "sft", "grpo"):
            assert is_conversational(row), row
        if is_conversational and name == "dpo":
            # An explicit prompt stays as it is.
            assert maybe_extract_prompt(row)["prompt"] == row["prompt"]
    print(f"{path.name}: {len(rows)} rows, {', '.join(rows.column_names)}")


folder = pathlib.Path(sys.argv[1])
for name in COLUMNS:
    check(name, folder / f"{name}.jsonl", False)
    check(name, folder / f"{name}-details.jsonl", True)
