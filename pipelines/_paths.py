"""What one stage writes and another reads, apart from the stages: importing one takes seconds."""

from pathlib import Path

DATA = Path("data")
REPORTS = Path("reports")
POLICY = Path("artifacts/augment/policy.json")
TRAINED = Path("artifacts/train")
CANDIDATE = Path("artifacts/register/candidate.json")
DECISION = Path("artifacts/promote/decision.json")
CROSSVALIDATION = REPORTS / "crossvalidation.json"
