"""FedDistill: the flow of messages that every strategy shares.

describe -> distill -> repair until nothing is missing -> integrate -> refine. A strategy is a
subclass that overrides `refine`. The arrays of its result are the synthetic sets, not weights.

Replies arrive in any order and node ids are random, so everything is kept by partition id.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from logging import INFO, WARNING

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedistill import planning, slots, wire
from fedistill.config import Config, RelabelConfig
from fedistill.cores import set_threads
from fedistill.errors import ClientsFailed, PartitionError, WireError
from fedistill.images import DataSpec
from fedistill.planning import distiller_of
from fedistill.sets import SyntheticSet
from fedistill.shares import Curve, Share, integrate
from fedistill.slots import Plan
from fedistill.worker import restore_teachers
from strategies import roll_call
from strategies.exchange import Exchange
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
    (None: they are here), `exchange` the bytes and who failed, `curves` what the server's own work
    is worth a look for.
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
        self.plans: dict[int, Plan] = {}
        self.sets: dict[int, SyntheticSet] = {}
        self.teachers: dict[int, nn.Module] = {}
        self.seconds: dict[str, float] = {}
        self.curves: dict[str, Curve] = {}
        self.exchange = Exchange(config, kept)
        self.at_home: LabellersAtHome | None = None

    @property
    def histograms(self) -> dict[int, list[int]]:
        """How many real images of each class every client holds that has described itself."""
        return {client: found.histogram for client, found in self.descriptions.items()}

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
        self._plan()
        server_round = 0
        while self._missing():
            server_round += 1
            result.train_metrics_clientapp[server_round] = self._distill(grid, server_round)
            self._deal_again()
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
        result.arrays = _arrays(self.sets)
        self.exchange.evaluating = True
        if evaluate_fn is not None:
            scores = evaluate_fn(server_round, result.arrays)
            if scores is not None:
                result.evaluate_metrics_serverapp[server_round] = scores
        return result

    def _distill(self, grid: Grid, server_round: int) -> MetricRecord:
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
                made=self.shares[client].counts if client in self.shares else (),
                teachers=self.shares[client].teachers if client in self.shares else (),
            )
            for client, counts in self._missing().items()
        }
        log(INFO, "distill: round %s asks %s clients", server_round, len(requests))
        contents = {n: wire.encode_distill_request(it) for n, it in requests.items()}
        self.report("collect", 0, len(requests), "")
        received = done = 0
        warnings: dict[str, list[int]] = {}
        most = {client: wire.largest(request) for client, request in requests.items()}
        for client, content in self.exchange.ask(grid, wire.DISTILL, contents, most=most):
            done += 1
            self.report("collect", done, len(requests), f"{self.exchange.called(client)} answered")
            try:
                share = wire.decode_share(content, requests[client])
                self._keep_teachers(share)
            except (WireError, RuntimeError) as error:
                self.exchange.fail(client, f"its reply was refused: {error}")
                continue
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

    def _keep_teachers(self, share: Share) -> None:
        """Rebuild a client's teachers, unless they have stayed at home."""
        if self.config.relabel.at == "server":
            client = share.partition_id
            teacher = restore_teachers(self.config, self.spec, client, share.teachers)
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
        """Ask nobody: students are tested on the server."""
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

        Raises:
            UserError: the experiment does not fit them.
        """
        if self._spec_of is not None:
            self.spec = self._spec_of([found.pixels for found in self.descriptions.values()])
        own = {client: wire.model_of(found) for client, found in self.descriptions.items()}
        if any(own.values()):
            log(INFO, "networks of clients: %s", {n: it.name for n, it in own.items() if it})
            everyone = range(self.config.partition.clients)
            models = tuple(own.get(n) or self.config.teacher_model(n) for n in everyone)
            self.config = self.exchange.config = replace(self.config, model=models)
        if self.exchange.kept is not None:  # a simulation is checked before it starts
            planning.check(self.config, self.spec)
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

    def _plan(self) -> None:
        try:
            self.plans = planning.plans(self.config, self.spec, self.histograms)
        except PartitionError as error:
            raise self._short(error) from error

    def _missing(self) -> Plan:
        """Return what each client still has to make, if anything.

        A client with no slot, as there are when N exceeds the images of a set, owes its teacher.
        """
        owed = {}
        for client, wanted in planning.requests(self.config, self.plans).items():
            share = self.shares.get(client)
            have = share.counts if share else (0,) * len(wanted)
            counts = [max(0, want - has) for want, has in zip(wanted, have, strict=True)]
            if share is None or any(counts):
                owed[client] = counts
        return owed

    def _deal_again(self) -> None:
        """Give the slots of failed clients to the others.

        Raises:
            ClientsFailed: too few are left, or none that holds a class.
        """
        self.exchange.require_clients()
        for ipc, plan in self.plans.items():
            lost = [counts for client, counts in plan.items() if client in self.failures]
            kept = {n: counts for n, counts in plan.items() if n not in self.failures}
            if not lost:
                continue
            wanted = [sum(column) for column in zip(*lost, strict=True)]
            held = {client: self.descriptions[client].histogram for client in kept}
            try:
                more = planning.allocate(self.config, self.spec, held, wanted, kept)
            except PartitionError as error:
                raise self._short(error) from error
            self.plans[ipc] = slots.add(kept, more)

    def _short(self, error: PartitionError) -> Exception:
        if not self.failures:
            return error
        return ClientsFailed(
            f"the clients that are left cannot fill the set: {error}; failed: "
            f"{self.exchange.reasons()}; mend one of them and run again"
        )


def _arrays(sets: Mapping[int, SyntheticSet]) -> ArrayRecord:
    arrays = {}
    for ipc, synthetic in sets.items():
        arrays[f"ipc-{ipc}/images"] = Array(synthetic.images.numpy())
        arrays[f"ipc-{ipc}/hard-labels"] = Array(synthetic.hard_labels.numpy())
        arrays[f"ipc-{ipc}/clients"] = Array(synthetic.clients.numpy())
        if synthetic.soft_labels is not None:
            arrays[f"ipc-{ipc}/teacher-logits"] = Array(synthetic.soft_labels.logits.numpy())
    return ArrayRecord(arrays)
