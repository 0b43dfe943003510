"""From proposals to designs that may be trained: what the budget refuses is counted and proposed again."""

from collections import Counter
from collections.abc import Callable, Mapping

from autopeft.errors import BudgetError, DesignError
from autopeft.searching.plan import CostModel
from autopeft.searching.samplers.base import Observation, Proposal, Sampler
from autopeft.searching.table import TrialTable
from autopeft.spec.cost import Estimate, format_cost
from autopeft.spec.trial import Outcome, TrialRecord
from autopeft.spec.units import format_bytes
from autopeft.study.store import StudyStore

MAX_REFUSALS_IN_A_ROW = 500
"""Refused proposals, with none accepted between them, after which the budget leaves too little of the space."""
N_REFUSALS_BEFORE_RANDOM = 10
"""Refused proposals in a row after which a design is drawn at random: a sampler can insist."""
MAX_DUPLICATES_IN_A_ROW = 100
"""Repeated proposals in a row after which the space is taken to be used up."""
RECORDED_SHARE = 0.25
"""Refused proposals that are recorded and learned from, as a share of the trials: more would make the sampler
take the border of the budget for the best place."""


class Proposals:
    """Accepts or refuses what the sampler proposes.

    Attributes:
        n_refused: Refused proposals by the limit that they broke most, or `requirement` (of the space), `illegal`
            (the cost model refused the design, as where a prompt leaves the longest input no room), `out_of_memory`
            (a design that was predicted to need no more ran out of it) or `duplicate`.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        n_trials: int,
        cost_model: CostModel,
        sampler: Sampler,
        store: StudyStore,
        table: TrialTable,
    ) -> None:
        self._limits = limits
        self._n_recorded_at_most = max(3, round(RECORDED_SHARE * n_trials))
        self._cost_model = cost_model
        self._sampler = sampler
        self._store = store
        self._table = table
        self.n_refused = sum(map(Counter, store.parts("n_refused")), Counter[str]())
        self._n_refused_here: Counter[str] = Counter(store.part("n_refused") or {})

    def next(self, on_refused: Callable[[TrialRecord], None]) -> tuple[Proposal, Estimate] | None:
        """Return the next proposal within the budget, with its estimate; None once the space is used up.

        Raises:
            BudgetError: Too many proposals in a row were over the budget.
        """
        in_a_row: Counter[str] = Counter()
        details: dict[str, str] = {}
        while in_a_row["duplicate"] < MAX_DUPLICATES_IN_A_ROW:
            (proposal,) = self._sampler.suggest(at_random=sum(in_a_row.values()) >= N_REFUSALS_BEFORE_RANDOM)
            estimate = None
            try:
                reason = self._cheap_refusal(proposal)
                if not reason:
                    estimate = self._cost_model(proposal.draw.design)
                    reason, why = self._refusal(estimate)
                    details |= {reason: why}
            except DesignError as error:  # legal on the model, but not with this data
                reason, details["illegal"] = "illegal", str(error)
            if estimate is not None and not reason:
                return proposal, estimate
            if reason == "requirement":
                details[reason] = proposal.draw.violation
            in_a_row[reason] += 1
            self._refuse(proposal, reason, on_refused)
            if sum(in_a_row.values()) >= MAX_REFUSALS_IN_A_ROW:
                tightest, count = in_a_row.most_common(1)[0]
                raise BudgetError(
                    f"{sum(in_a_row.values())} proposals in a row were refused, {count} of them by "
                    f"{self._way_out(tightest, details.get(tightest, ''))}"
                )
        return None

    def take_back(self, proposal: Proposal) -> None:
        """Say that a proposal was not begun after all."""
        self._tell(proposal)

    def _tell(
        self, proposal: Proposal, excess: Mapping[str, float] | None = None, record: TrialRecord | None = None
    ) -> None:
        """Tell the sampler that a proposal was refused, and by how much, where it is to learn from that."""
        self._sampler.update(
            [
                Observation(
                    params=proposal.params,
                    distributions=proposal.distributions,
                    lesson="worse" if excess else "nothing",
                    record=record,
                    excess=excess or {},
                    ticket=proposal.ticket,
                )
            ]
        )

    def _refusal(self, estimate: Estimate) -> tuple[str, str]:
        """Return why an estimate is refused, and details; both empty where it is within all that is known."""
        over = self._table.calibration.excess(self._limits, estimate)
        worst = max(over, key=lambda name: over[name], default="")
        if worst and over[worst] > 0:
            return worst, ""
        exhausted = self._table.calibration.exhausted(estimate)
        if exhausted is None:
            return "", ""
        needed = format_bytes(exhausted.estimate.device_bytes)
        return "out_of_memory", f"trial {exhausted.number}, predicted to need {needed}, ran out of memory"

    def _way_out(self, tightest: str, details: str) -> str:
        """Return what refused most, and what can be done about it."""
        smaller = "or take a space of smaller designs"
        if tightest in self._limits:
            return f"{tightest} {format_cost(tightest, self._limits[tightest])}; raise that limit, {smaller}"
        return tightest + {
            "illegal": f": {details}, {smaller}",
            "requirement": f": {details or 'nothing of it trains'}; loosen what the space requires",
            "out_of_memory": f": {details}; begin a study with a lower training.batch_size or training.max_length, "
            f"{smaller}",
        }.get(tightest, ": the space has hardly another design; lower n_trials, or take a larger space")

    def _cheap_refusal(self, proposal: Proposal) -> str:
        """Return why a proposal is refused without a full estimate, or an empty string."""
        if proposal.draw.violation:
            return "requirement"
        if not proposal.draw.design.blocks and self._cost_model.trainable_params(proposal.draw.design) == 0:
            return "requirement"  # the base model as it is: no design to train
        if self._table.knows(proposal.draw.design, proposal.draw.learning_rates):
            return "duplicate"
        if not self._limits:
            return ""
        least = self._cost_model.lower_bound(proposal.draw.design)
        over = {name: least[name] / limit for name, limit in self._limits.items() if name in least}
        worst = max(over, key=lambda name: over[name], default="")
        return worst if worst and over[worst] > 1 else ""

    def _refuse(self, proposal: Proposal, reason: str, on_refused: Callable[[TrialRecord], None]) -> None:
        self.n_refused[reason] += 1
        self._n_refused_here[reason] += 1
        self._store.set_part("n_refused", dict(self._n_refused_here))
        n_recorded = self._table.n_recorded_refusals()
        if reason in ("requirement", "illegal", "out_of_memory") and self.n_refused[reason] <= self._n_recorded_at_most:
            self._tell(proposal, {reason: 1.0})
            return
        if reason not in self._limits or n_recorded >= self._n_recorded_at_most:
            self._tell(proposal)
            return
        estimate = self._cost_model(proposal.draw.design)
        over = self._table.calibration.excess(self._limits, estimate)
        record = self._store.add(
            TrialRecord(
                number=-1,
                design=proposal.draw.design,
                learning_rates=proposal.draw.learning_rates,
                seed=0,
                outcome=Outcome.INFEASIBLE,
                estimate=estimate,
                excess=over,
                reason=self._over_words(reason, estimate),
                first_event=self._table.next_event(),
            ),
            proposal.params,
            proposal.distributions,
        )
        self._table.put(record)
        self._tell(proposal, over, record)
        on_refused(record)

    def _over_words(self, name: str, estimate: Estimate) -> str:
        """Say which limit an estimate is over; where only what trials measured says so, that."""
        cost, limit = estimate.cost(name), self._limits[name]
        over = f"over the limit of {format_cost(name, limit)}"
        if cost > limit:
            return f"{name} {format_cost(name, cost)} is {over}"
        bound = format_cost(name, self._table.calibration.memory_bound(estimate))
        return f"{name} {format_cost(name, cost)} may reach {bound} by what trials measured, {over}"
