"""The base of this package's metrics: `evaluate.Metric`s that keep statistics instead of samples."""

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import evaluate
import torch
from datasets import Features, Value
from safetensors.torch import load, save
from torch import Tensor

from .statistics import Statistics


class StreamingMetric(evaluate.Metric):
    """An `evaluate.Metric` whose memory does not grow with the number of samples.

    It is used as every `evaluate.Metric` is: `add_batch` as often as wanted, then `compute`. Where `evaluate` writes
    each sample to a file and reads all of them back, this keeps [`Statistics`]; over several processes `compute`
    exchanges those, once, through `evaluate`'s own mechanism.

    With several processes there are two ways, and either counts every sample once:

    - each process adds its own samples to a metric made with `num_process=N, process_id=i`; `compute`, which all
      processes must call for the same metrics in the same order, returns the result on process 0 and `None` on the
      others. No sample may then be there twice: use
      `Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=False))` or a sampler that does not pad;
    - each process adds `accelerator.gather_for_metrics(...)`, which drops the padding, to a plain metric, and each
      computes the same result.

    Args:
        num_process, process_id, experiment_id, cache_dir, seed: those of `evaluate.Metric`. The processes must see the
            same `cache_dir` (by default below `HF_HOME`).
        timeout (`float`, *optional*, defaults to 600): seconds to wait for the other processes in `compute`.
    """

    description = ""
    citation = ""
    inputs: ClassVar[Features | list[Features]]
    statistics: dict[str, Any]

    def __init__(
        self,
        num_process: int = 1,
        process_id: int = 0,
        experiment_id: str | None = None,
        cache_dir: str | None = None,
        seed: int = 0,
        timeout: float = 600,
    ):
        self._exchange_options = {
            "num_process": num_process,
            "process_id": process_id,
            "cache_dir": cache_dir,
            "timeout": timeout,
        }
        super().__init__(experiment_id=experiment_id, seed=seed, **self._exchange_options)
        self.reset()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=self.__doc__ or "",
            features=self.inputs,
            streamable=True,
        )

    def __len__(self) -> int:
        """The number of predictions seen since the last `compute`, or of references where there are more."""
        return max(self._seen.values())

    @abstractmethod
    def new_statistics(self) -> Mapping[str, Statistics]:
        """Empty statistics, by name."""

    @abstractmethod
    def update(self, predictions: Any, references: Any) -> None:
        """Add a batch, of which one side may be `None`, to `self.statistics`."""

    @abstractmethod
    def score(self, *args: Any, **statistics: Any) -> dict[str, float]:
        """The result, from the merged statistics of all processes."""

    def reset(self) -> None:
        """Forget all samples."""
        self.statistics = dict(self.new_statistics())
        self._seen = {"predictions": 0, "references": 0}

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch of predictions, of references, or of both."""
        if kwargs:
            raise ValueError(f"{self.name} takes `predictions` and `references`; got {sorted(kwargs)}.")
        if references is not None and "references" not in self._feature_names():
            raise ValueError(f"{self.name} takes no `references`.")
        self.update(predictions, references)
        self._seen["predictions"] += 0 if predictions is None else len(predictions)
        self._seen["references"] += 0 if references is None else len(references)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one prediction, one reference, or a pair."""
        batch = {"predictions": prediction, "references": reference}
        self.add_batch(**{k: None if v is None else torch.as_tensor(v)[None] for k, v in batch.items()}, **kwargs)

    def gather(self) -> dict[str, Any] | None:
        """The merged statistics of all processes, on process 0; `None` on the others, which must call it too."""
        if self.num_process == 1:
            return self.statistics
        state = {
            f"{name}.{key}": tensor.contiguous().cpu()
            for name, item in self.statistics.items()
            for key, tensor in item.state_dict().items()
        }
        # A fresh name for each exchange of the program: process 0 may still read one when the others begin the next.
        experiment = f"{self.experiment_id}-{self.name}-{next(_exchange_numbers)}"
        exchange = _StatisticsExchange(experiment_id=experiment, **self._exchange_options)
        payloads = exchange.compute(statistics=[save(state)])
        return None if payloads is None else self._merged([load(payload) for payload in payloads])

    def _merged(self, states: list[dict[str, Tensor]]) -> dict[str, Any]:
        merged = dict(self.new_statistics())
        for state in states:
            for name, item in self.new_statistics().items():
                prefix = f"{name}."
                item.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
                merged[name].merge(item)
        return merged

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> Mapping[str, float] | None:
        """Add the given samples, if any, and return the result; forgets all samples.

        Returns:
            `dict[str, float]`, or `None` on processes other than 0.
        """
        if predictions is not None or references is not None or kwargs:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        statistics = self.gather()
        self.reset()
        return None if statistics is None else self.score(**statistics)


_exchange_numbers = itertools.count()


class _StatisticsExchange(evaluate.Metric):
    """Brings what each process holds to process 0, as `evaluate` brings samples there: one row a process."""

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"statistics": Value("large_binary")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, statistics: list[bytes]) -> list[bytes]:
        return list(statistics)
