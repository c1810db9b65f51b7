"""CPU, memory and GPU use of the machine, logged by MLflow's own monitor."""

import threading

from llmtune.tracking import client as _mlflow_settings  # noqa: F401 (mlflow is imported with our settings)

_SAMPLING_SECONDS = 5
_STOP_DEADLINE_SECONDS = 3.0


class SystemMetrics:
    """Logs `system/…` metrics of a run every 5 s from a thread of its own.

    Args:
        uri: absolute tracking URI.
        run_id: MLflow run.
        resumed: whether the run goes on; its step count then does too.
    """

    def __init__(self, uri: str, run_id: str, *, resumed: bool) -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            run_id, sampling_interval=_SAMPLING_SECONDS, resume_logging=resumed, tracking_uri=uri
        )
        self._monitor.start()

    def stop(self, deadline_seconds: float | None = None) -> None:
        """Stop; a last request to a store that is away is left behind.

        Args:
            deadline_seconds: wait for so long at most; None is 3 s.
        """
        stopping = threading.Thread(target=self._monitor.finish, name="llmtune-system-metrics-stop", daemon=True)
        stopping.start()
        stopping.join(_STOP_DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds)
