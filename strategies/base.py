"""FedDistill: the flow of messages that every strategy shares.

describe -> distill -> repair until nothing is missing -> integrate -> refine. A strategy is a
subclass that overrides `refine`. The arrays of its result are the synthetic sets, not weights.

Replies arrive in any order and node ids are random, so everything is kept by partition id.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedistill import planning, wire
from fedistill.config import Config, RelabelConfig
from fedistill.cores import set_threads
from fedistill.errors import WireError
from fedistill.images import DataSpec
from fedistill.planning import distiller_of
from fedistill.sets import SyntheticSet
from fedistill.shares import Curve, Share, integrate
from fedistill.slots import Plan
from fedistill.worker import restore_teachers
from strategies import own_networks, roll_call
from strategies.budget import Budget
from strategies.exchange import Exchange
from strategies.failures import Failures
from strategies.kept import KeptReplies
from strategies.labelling import LabellersAtHome
from strategies.tested_at_home import require_testers

Report = Callable[[str, int, int, str], None]
SpecOf = Callable[[Sequence[Sequence[Sequence[int]]]], DataSpec]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FedDistill(Strategy):
    """Base of the strategies: collects shares until the budget is full, then refines the union.

    Args:
        config: of the experiment.
        spec: of the data set.
        device: where the server works.
        dtype: of its convolutions.
        report: called with stage, steps done, steps in all, and a note.
        kept: of a deployment: where replies are kept; None in a simulation.
        spec_of: makes the spec from the devices' pixel levels, where they alone have images.

    After `start`: `sets` holds the refined set of each IPC, `plans` who made what, `shares` and
    `teachers` what each client delivered, `at_home` who labels where teachers stay with the clients
    (None: they are here), `unheard` whose teacher is here and says nothing finite, `exchange` the
    bytes and who failed, `curves` what the server's own work is worth a look for.
    """

    def __init__(
        self,
        config: Config,
        spec: DataSpec,
        *,
        device: torch.device,
        dtype: torch.dtype,
        report: Report = lambda stage, done, total, note: None,
        kept: KeptReplies | None = None,
        spec_of: SpecOf | None = None,
    ) -> None:
        self._spec_of = spec_of
        self.config = config
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self.report = report
        self.descriptions: dict[int, wire.Description] = {}
        self.shares: dict[int, Share] = {}
        self._asked: list[Plan] = []
        self.plans: dict[int, Plan] = {}
        self.sets: dict[int, SyntheticSet] = {}
        self.teachers: dict[int, nn.Module] = {}
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, Curve] = {}
        self.exchange = Exchange(config, kept)
        self.at_home: LabellersAtHome | None = None
        self.unheard = Failures("has its answers left out")

    @property
    def histograms(self) -> dict[int, list[int]]:
        """How many real images of each class every client holds that has described itself."""
        return {client: found.histogram for client, found in self.descriptions.items()}

    @property
    def absent_labellers(self) -> Failures:
        """Why labels of a client that takes part are missing, by partition id."""
        return self.unheard if self.at_home is None else self.at_home.failures

    @property
    def failures(self) -> dict[int, str]:
        """Why a client is left out, by partition id."""
        return self.exchange.failures

    def combine(self, sets: dict[int, SyntheticSet]) -> dict[int, SyntheticSet]:
        """Do what concerns the sets of all sizes together, before they are refined; nothing here.

        Args:
            sets: the union of the shares for each IPC, without soft labels.
        """
        return sets

    @abstractmethod
    def refine(
        self,
        synthetic: SyntheticSet,
        views: RelabelConfig,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> SyntheticSet:
        """Turn the union of the shares into the set that students are trained on.

        The evaluation calls it too, for the sets beside: real images, plain views.

        Args:
            synthetic: without soft labels.
            views: the experiment's own `relabel`, or the same with other views.
            report: called with views done and views in all.
        """

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        **kwargs: object,
    ) -> Result:
        """Run the federation: as many rounds of distilling as it takes to fill the budget.

        Args:
            grid: to reach the clients.
            initial_arrays: not used: a set is made from nothing.
            num_rounds: not used: a second round is needed only when a client has failed.
            timeout: not used: `federation.deadline_s` is each phase's limit.
            train_config: not used: the experiment's config travels in every request.
            evaluate_config: not used.
            evaluate_fn: called once with the sets' arrays.
            **kwargs: accepted for newer versions of Flower.

        Raises:
            ClientsFailed: fewer good clients than `federation.min_clients` are left, or a class
                that only failed clients hold.
            PartitionError: nobody holds a class.
        """
        result = Result()
        self.descriptions = roll_call.call(
            self.exchange, grid, self.spec, self.report, pixels=self._spec_of is not None
        )
        self._adopt()
        budget = Budget(self.config, self.spec, self.histograms, self.exchange.failures)
        server_round = 0
        while owed := budget.owed(self.shares):
            server_round += 1
            result.train_metrics_clientapp[server_round] = self._distill(grid, server_round, owed)
            self.exchange.require_clients()
            budget.deal_again()
        self.plans = budget.plans
        self.teachers = dict(sorted(self.teachers.items()))
        if self.config.relabel.at == "clients":
            self.at_home = LabellersAtHome(
                self.config, self.spec, self.exchange, grid, list(self.shares)
            )
        set_threads()  # clients in this process have set their own
        united = {
            ipc: integrate([*self.shares.values()], plan, self.spec, planning.row(self.config, ipc))
            for ipc, plan in self.plans.items()
        }
        started = time.perf_counter()
        united = self.combine(united)
        self.seconds["cotrain"] = time.perf_counter() - started
        started = time.perf_counter()
        for ipc, synthetic in united.items():
            self.sets[ipc] = self.refine(
                synthetic,
                self.config.relabel,
                lambda done, total: self.report("relabel", done, total, ""),
            )
        self.seconds["relabel"] = time.perf_counter() - started
        result.arrays = wire.encode_sets(self.sets)
        self.exchange.evaluating = True
        if evaluate_fn is not None:
            scores = evaluate_fn(server_round, result.arrays)
            if scores is not None:
                result.evaluate_metrics_serverapp[server_round] = scores
        return result

    def _distill(self, grid: Grid, server_round: int, owed: Plan) -> MetricRecord:
        """Ask each client for the images that it still owes, and keep the shares that arrive.

        A client asked again gets its teacher back with the request: its process may have kept
        nothing. One whose reply is not a share has failed.
        """
        requests = {
            client: wire.DistillRequest(
                config=self.config,
                spec=self.spec,
                partition_id=client,
                counts=counts,
                attempt=server_round - 1,
                made=self._made_by(client, len(counts)),
                teachers=self.shares[client].teachers if client in self.shares else (),
            )
            for client, counts in owed.items()
        }
        self._asked.append(owed)
        log(INFO, "distill: round %s asks %s clients", server_round, len(requests))
        contents = {n: wire.encode_distill_request(it) for n, it in requests.items()}
        self.report("collect", 0, len(requests), "")
        received = 0
        warnings: dict[str, list[int]] = {}

        def read(client: int, content: RecordDict) -> Share:
            share = wire.decode_share(content, requests[client])
            self._keep_teachers(share)
            return share

        most = {client: wire.largest(request) for client, request in requests.items()}
        answers = self.exchange.ask(grid, wire.DISTILL, contents, read, most)
        for done, (client, share) in enumerate(answers, start=1):
            self.report("collect", done, len(requests), f"{self.exchange.called(client)} answered")
            known = self.shares.get(client)
            self.shares[client] = share if known is None else known.extended(share)
            received += len(share.images)
            for text in share.warnings:
                warnings.setdefault(text, []).append(client)
        for text, clients in sorted(warnings.items()):
            log(WARNING, "client %s: %s", ", ".join(map(str, sorted(clients))), text)
        # Who was silent now has failed, even with a share from an earlier round: it would be asked
        # for ever.
        for client in self.failures:
            self.shares.pop(client, None)
            self.teachers.pop(client, None)
        self.shares = dict(sorted(self.shares.items()))
        log(INFO, "distill: received %s images, %s clients failed", received, len(self.failures))
        return MetricRecord({"images": received, "failures": len(self.failures)})

    def _made_by(self, client: int, entries: int) -> tuple[tuple[int, ...], ...]:
        """Return what a client got in each round so far: all of it, or it would have failed."""
        rounds = self._asked if client in self.shares else []
        return tuple(tuple(plan.get(client, (0,) * entries)) for plan in rounds)

    def _keep_teachers(self, share: Share) -> None:
        """Rebuild a client's teachers, unless they have stayed at home.

        Raises:
            WireError: they are not networks that the experiment asked for, or say nothing finite.
        """
        if self.config.relabel.at == "clients":
            return
        client = share.partition_id
        try:
            teacher = restore_teachers(self.config, self.spec, client, share.teachers)
        except RuntimeError as error:
            raise WireError(f"its teacher cannot be rebuilt: {error}") from error
        with torch.no_grad():  # finite weights may be so large that what they say is not
            said = teacher(torch.zeros(1, self.spec.channels, self.spec.size, self.spec.size))
        if not bool(said.isfinite().all()):
            raise WireError("its teacher's answer to a plain image is not finite")
        self.teachers[client] = teacher.to(self.device)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: `start` asks, and takes each reply as it comes."""
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return nothing: see `configure_train`."""
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: `evaluate_fn` tests students, here or at the clients."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing was asked."""
        return None

    def summary(self) -> None:
        """Log what the strategy does."""
        distill = self.config.distill
        log(INFO, "\t├──> %s: %s, IPC %s", type(self).__name__, distill.name, list(distill.ipc))
        if distiller_of(self.config).uses_real_images:
            log(WARNING, "%s: the images sent by clients show real ones", distill.name)
        if self.config.cotrain is not None:
            options = self.config.cotrain.options
            log(
                INFO,
                "\t├──> cotrain: %s, %s steps, matched to: %s",
                self.config.cotrain.name,
                options["iterations"],
                options["public"] or options["reference"],
            )
        relabel = self.config.relabel
        log(INFO, "\t└──> relabel: %s at %s, %s views", relabel.name, relabel.at, relabel.views)

    def _adopt(self) -> None:
        """Let devices train the networks that they have chosen, and the spec be of their images.

        One whose network does not fit is left out, and its images have no part in the spec.

        Raises:
            UserError: the experiment itself does not fit its data.
            ClientsFailed: too few are left.
        """
        if self.exchange.kept is not None:  # a simulation is checked before it starts
            planning.check(self.config, self.spec)
        said = {client: wire.model_of(found) for client, found in self.descriptions.items()}
        own = {client: model for client, model in said.items() if model is not None}
        self.config, refused = own_networks.adopt(self.config, self.spec, own)
        self.exchange.config = self.config
        for client, why in refused.items():
            self.exchange.fail(client, why)
            del self.descriptions[client], own[client]
        if refused:
            self.exchange.require_clients()
        if own:
            log(INFO, "networks of clients: %s", {n: model.name for n, model in own.items()})
        if self._spec_of is not None:
            self.spec = self._spec_of([found.pixels for found in self.descriptions.values()])
        if self.config.evaluate.at == "clients":
            require_testers(self.descriptions)
        for client, found in self.descriptions.items():
            if found.unknown_classes:
                log(
                    WARNING,
                    "%s has images of classes that nobody asks for: %s",
                    self.exchange.called(client),
                    ", ".join(found.unknown_classes),
                )
