"""Who gives way when slots or blocks run out, who does not, and that nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace

from shadow_traffic import CONFIG, expect_all, make_engine, make_request, run_all


def test_an_urgent_request_preempts_a_less_urgent_one_when_slots_run_out() -> None:
    config = replace(CONFIG, max_num_seqs=2)
    engine, _ = make_engine(config)
    requests = [
        make_request(name, (number + 1,), 5, max_tokens=9, ignore_eos=True)
        for number, name in enumerate(("old", "new"))
    ]
    requests.append(make_request("urgent", (9,), 0, max_tokens=9, ignore_eos=True))
    for request in requests[:2]:
        engine.add(request)
    outputs = engine.step()
    engine.add(requests[2])
    outputs += engine.step()
    assert [output.request_id for output in outputs[2:]] == ["old", "urgent"]
    tokens = run_all(engine)
    for output in reversed(outputs):
        tokens[output.request_id, 0][:0] = output.token_ids
    assert tokens == expect_all(requests, config)
    assert engine.stats().num_preemptions == 1


def test_an_urgent_request_takes_back_what_this_step_gave_to_a_less_urgent_one() -> None:
    config = replace(CONFIG, max_num_seqs=1)
    engine, executor = make_engine(config)
    requests = [make_request("patient", (1,) * 20, 5), make_request("urgent", (2, 3), 0)]
    engine.add(requests[0])
    engine.step()
    engine.add(requests[1])
    outputs = engine.step()
    # The last 8 prompt tokens of "patient" had been scheduled when "urgent" took its only slot.
    assert executor.batches[1].q_lens.tolist() == [2]
    tokens = run_all(engine)
    tokens["urgent", 0][:0] = outputs[0].token_ids
    assert tokens == expect_all(requests, config)


def test_nobody_is_preempted_when_the_slots_would_still_not_do() -> None:
    config = replace(CONFIG, max_num_seqs=2)
    engine, _ = make_engine(config)
    engine.add(make_request("equal", (1,), 0, max_tokens=3, ignore_eos=True))
    engine.add(make_request("low", (2,), 1, max_tokens=3, ignore_eos=True))
    engine.step()
    engine.add(make_request("urgent", (3,), 0, n=2))
    assert [output.request_id for output in engine.step()] == ["equal", "low"]
    assert engine.stats().num_preemptions == 0


def test_recomputing_is_no_prefix_query() -> None:
    config = replace(CONFIG, max_num_seqs=1)
    engine, _ = make_engine(config)
    engine.add(make_request("patient", (1,) * 9, 5, ignore_eos=True))
    engine.step()
    engine.add(make_request("urgent", (2,) * 3, 0, max_tokens=1))
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 0]
    stats = engine.stats()
    assert (stats.num_preemptions, stats.num_prefix_queries, stats.num_prefix_hits) == (1, 12, 0)


def test_nobody_is_preempted_when_that_would_not_help() -> None:
    config = replace(CONFIG, num_blocks=9, prefix_caching=False, max_num_batched_tokens=40)
    engine, _ = make_engine(config)
    engine.add(make_request("equal", (1,) * 17, 0, max_tokens=3, ignore_eos=True))
    engine.add(make_request("low", (1,) * 5, 1, max_tokens=3, ignore_eos=True))
    engine.step()
    # 8 blocks: 5 are held by "equal", 2 by "low", 1 is free; "urgent" needs 4.
    engine.add(make_request("urgent", (1,) * 13, 0, max_tokens=3))
    assert [output.request_id for output in engine.step()] == ["equal", "low"]
    assert engine.stats().num_preemptions == 0


def test_a_protected_sequence_is_not_preempted_for_an_urgent_one() -> None:
    config = replace(CONFIG, max_num_seqs=1)
    engine, _ = make_engine(config)
    engine.add(make_request("often", (1,), 9, max_tokens=20, ignore_eos=True))
    for number in range(4):
        engine.step()
        engine.add(make_request(str(number), (2,), 0, max_tokens=1))
        engine.step()
    assert engine.stats().num_preemptions == 3
    assert engine.stats().num_waiting == 1, "the fourth waits until it is done"


def test_equal_priority_never_preempts_to_start() -> None:
    config = replace(CONFIG, max_num_seqs=1)
    engine, _ = make_engine(config)
    engine.add(make_request("first", max_tokens=9))
    engine.step()
    engine.add(make_request("second", max_tokens=9))
    run_all(engine)
    assert engine.stats().num_preemptions == 0


def test_the_newest_of_the_lowest_priority_is_the_victim_and_resumes_first() -> None:
    config = replace(CONFIG, max_num_seqs=3, num_blocks=6, prefix_caching=False)
    engine, _ = make_engine(config)
    for request_id, priority in (("low", 1), ("old", 0), ("new", 0), ("late", 1)):
        engine.add(make_request(request_id, (1,), priority, max_tokens=12, ignore_eos=True))
    seen: list[list[str]] = []
    while engine.has_work:
        seen.append([output.request_id for output in engine.step()])
    # 5 blocks of 4: at 5 tokens each of the three needs a second one.
    assert seen[:5] == [["old", "new", "low"]] * 4 + [["old", "new"]]
    after = [step for step in seen[5:] if "low" in step or "late" in step]
    assert "low" in after[0] and "late" in after[-1]
    assert sum("low" in step for step in seen) == sum("late" in step for step in seen) == 12


def test_a_sequence_preempted_three_times_is_no_victim_while_another_is_possible() -> None:
    engine, _ = make_engine(CONFIG)
    engine.add(make_request("often", (1,), 9, max_tokens=20, ignore_eos=True))
    engine.step()
    scheduler = engine.scheduler
    for _ in range(3):
        scheduler._preempt(scheduler.slots.running_by_rank()[0])
        engine.step()
    engine.add(make_request("fresh", (2,), 0, max_tokens=20, ignore_eos=True))
    engine.step()
    assert [seq.request.request_id for seq in scheduler.slots.running_by_rank()] == [
        "often",
        "fresh",
    ]
