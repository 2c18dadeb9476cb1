"""What a gateway counts of its answers, its engines and what came of its predictions."""

from service.backends.switching import OUTCOMES
from service.deadline import STAGES, Stages
from service.exposition import retire
from service.metrics import NO_SCENE
from service.ranking import RankedItems
from service.scenes import Scene, Scenes
from service.settings import Settings


class Tally:
    """Implements `service.backends.switching.Observer` and `service.feedback.Counts`."""

    def __init__(self, scenes: Scenes, settings: Settings):
        self._scenes, self._settings, self._metrics = scenes, settings, scenes.metrics
        self._shown: set[tuple[str, ...]] = set()
        self._show_zeros()
        self._show_versions()

    def reload(self, settings: Settings) -> None:
        """The scenes are others."""
        self._settings = settings
        self._show_zeros()
        self._show_versions()

    def switched(self, alias: str, outcome: str) -> None:
        """Count a switch; see `service.backends.switching.Observer`."""
        self._metrics.switches.labels(alias, outcome).inc()
        self._show_versions()

    def switching(self, alias: str, under_way: bool) -> None:
        """Show that a switch is under way."""
        self._metrics.switching.labels(alias).set(under_way)

    def shadowed(self, alias: str, difference: float) -> None:
        """Observe a shadow's score."""
        self._metrics.shadow_difference.labels(alias).observe(difference)

    def predicted(self, scene: str, task: str, probability: float) -> None:
        """Count a prediction for an item that was shown; see `service.feedback.Counts`."""
        self._metrics.predicted.labels(scene, task).inc(probability)

    def happened(self, scene: str, task: str) -> None:
        """Count an outcome."""
        self._metrics.happened.labels(scene, task).inc()

    def answered(
        self, scene: Scene, ranked: RankedItems, candidates: int, stages: Stages, late: bool
    ) -> None:
        """Count one answer; `late` once its deadline has passed."""
        metrics, name = self._metrics, scene.name
        if late:
            metrics.late.labels(name).inc()
        outcome = "answered" if ranked.reason is None else "degraded"
        metrics.requests.labels(name, outcome).inc()
        if ranked.reason is not None:
            metrics.degraded.labels(name, ranked.reason, ranked.ranked_by).inc()
        for part, reason in ranked.missing.items():
            metrics.features_absent.labels(name, part, reason).inc()
        if ranked.payload_bytes:
            metrics.payload_bytes.labels(name).observe(ranked.payload_bytes)
        for ages, age_s in (
            (metrics.snapshot_age, ranked.ages_s.snapshot),
            (metrics.event_age, ranked.ages_s.event),
        ):
            if age_s is not None:
                ages.labels(name).observe(age_s)
        metrics.candidates.labels(name).observe(candidates)
        for stage, seconds in stages.seconds.items():
            metrics.stage_seconds.labels(name, stage).observe(seconds)
        metrics.request_seconds.labels(name).observe(sum(stages.seconds.values()))

    def _show_zeros(self) -> None:
        """Counters whose first event is an alert exist from the start, or it would go unseen; and
        what every answer is counted in, since the first request would wait for milliseconds while
        its buckets are made (of several workers, each in a file)."""
        metrics = self._metrics
        for name in (*self._scenes.by_name, NO_SCENE):
            metrics.failed.labels(name)
        for name in self._scenes.by_name:
            for stage in STAGES:
                metrics.stage_seconds.labels(name, stage)
            for outcome in ("answered", "degraded"):
                metrics.requests.labels(name, outcome)
            for histogram in (
                metrics.request_seconds,
                metrics.candidates,
                metrics.payload_bytes,
                metrics.snapshot_age,
                metrics.event_age,
            ):
                histogram.labels(name)
        for alias in self._scenes.served:
            metrics.switching.labels(alias)
            for outcome in OUTCOMES:
                metrics.switches.labels(alias, outcome)

    def _show_versions(self) -> None:
        shown: set[tuple[str, ...]] = set()
        for scene in self._scenes.by_name.values():
            config = scene.served.config
            engine = self._settings.models[scene.served.alias].engine
            shown.add((scene.name, scene.served.alias, config.version, engine))
            for task in config.model.tasks:
                self._metrics.score.labels(scene.name, config.version, task)
        for labels in self._shown - shown:
            retire(self._metrics.model, *labels)
        for labels in shown:
            self._metrics.model.labels(*labels).set(1)
        self._shown = shown
