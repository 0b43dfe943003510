"""The journal is cut off: whatever is left of its last line, the record says what it said before that line."""

from tests.bench import Bench, KnownWorker


def test_a_record_cut_at_every_byte_of_its_last_line_is_read(bench: Bench) -> None:
    bench.run(KnownWorker(bench.model), n_trials=2, sampler="random")
    journal = bench.folder.journal
    whole = journal.read_bytes()
    last_line = whole.rstrip(b"\n").rfind(b"\n") + 1
    journal.write_bytes(whole[:last_line])
    before = bench.store().records()
    for cut in range(last_line, len(whole)):
        journal.write_bytes(whole[:cut])
        assert bench.store().records() == before
        assert journal.read_bytes().startswith(whole[:last_line])  # Optuna appends that the study is there already
    journal.write_bytes(whole)
    bench.store()
    assert journal.read_bytes().startswith(whole)
