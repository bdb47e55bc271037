"""How far a run goes, from wherever it stands and whatever its batch was before."""

import pytest

from scaletrain.config.schema import Train
from scaletrain.engine.plan import Plan, end_before_repeats, plan_run
from scaletrain.engine.state import RunState
from scaletrain.errors import DataError

BEGUN = RunState(step=6, samples_seen=48, tokens_seen=480)


def plan(state: RunState, batch: int, **train: int) -> Plan:
    return plan_run(Train.model_validate(train), state, global_batch=batch, micro_batch=batch, context=10)


def test_a_run_from_the_start_reads_its_steps_or_its_tokens_rounded_up() -> None:
    assert plan(RunState(), 8, max_steps=5) == Plan(5, 8, 8, 10, 40)
    assert plan(RunState(), 8, max_tokens=401) == Plan(6, 8, 8, 10, 48)


def test_another_batch_at_a_resume_counts_from_there_on_only() -> None:
    assert plan(BEGUN, 4, max_steps=15) == Plan(15, 4, 4, 10, 48 + 9 * 4)
    assert plan(BEGUN, 16, max_tokens=960) == Plan(9, 16, 16, 10, 96)  # 480 tokens are left: three steps of 160
    assert plan(BEGUN, 4, max_steps=3) == Plan(6, 4, 4, 10, 48)  # already done


def test_a_source_that_may_not_be_repeated_ends_the_run_before_it_is() -> None:
    wanted = plan(BEGUN, 4, max_steps=15)
    assert end_before_repeats(wanted, BEGUN, None, stops=False) is wanted
    assert end_before_repeats(wanted, BEGUN, (63, "web"), stops=True) == Plan(9, 4, 4, 10, 60)
    assert end_before_repeats(wanted, BEGUN, (20, "web"), stops=True) == Plan(6, 4, 4, 10, 48)  # beyond it already
    message = "source web would be read more often than its max_epochs from step 10 of 15 on: lower its weight or the"
    with pytest.raises(DataError, match=message):
        end_before_repeats(wanted, BEGUN, (63, "web"), stops=False)
    with pytest.raises(DataError, match="from step 1 of 5 on"):
        end_before_repeats(plan(RunState(), 8, max_steps=5), RunState(), (7, "web"), stops=True)
