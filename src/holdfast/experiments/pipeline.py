"""The two-stage run: rows in; supervised fine-tuning, then preference alignment; an aligned model and a record out.

What the run's folder holds is listed in `run_folder`. A run that is stopped, whenever and however that is, goes on with
`resume=True`: finished stages are not run again, the one that was running goes on from its newest checkpoint, and the
result is that of a run which was never stopped (docs/resume.md).
"""

from __future__ import annotations

import gc
import shutil
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast.errors import HoldfastError, Interrupted
from holdfast.experiments.arguments import StageArguments, effective_settings, stage_arguments
from holdfast.experiments.config import RunConfig
from holdfast.experiments.disk import require_room
from holdfast.experiments.held_out import load_scores, save_scores
from holdfast.experiments.record import environment, hub_commit, without_keys, write_record
from holdfast.experiments.resume import require_same, require_saved, saved_digest
from holdfast.experiments.rows import RunRows, prepare_stages, read_run_rows, require_held_out
from holdfast.experiments.run_folder import METRICS, QUARANTINE, RECORD, SCORES, RunFolder
from holdfast.experiments.verdict import as_record, changes, verdict
from holdfast.models.export import save_final
from holdfast.models.folder import folder_digest
from holdfast.models.loading import DTYPES
from holdfast.models.remote_code import code_digest
from holdfast.models.tiny import tiny_model
from holdfast.objectives.registry import objective_spec
from holdfast.ranks import is_main, joined, once
from holdfast.training.checkpoint import CheckpointStore
from holdfast.training.interruption import Stopped, Stopping
from holdfast.training.lean_trainer import LeanTrainer
from holdfast.training.metrics_file import MetricsFile
from holdfast.training.preference_trainer import PreferenceTrainer
from holdfast.training.progress import train_with_progress
from holdfast.training.scoring import PairScores, score_pairs
from holdfast.training.sft_trainer import SFTTrainer

Say = Callable[[str], None]


def run(config: RunConfig, *, overwrite: bool = False, resume: bool = False, say: Say = print) -> Path:
    """Run every configured stage; returns the run folder.

    Args:
        overwrite: move a run that is there aside; without it, such a folder is an error.
        resume: go on with the run that is there; where there is none, begin it.
        say: receives each line meant for people.

    Raises:
        HoldfastError: whatever the user can mend, before the first step wherever that is possible.
        Interrupted: SIGTERM or SIGINT; says what is there, and how to go on.
    """
    joined()
    path = Path(config.output_dir).expanduser()
    folder = RunFolder(path, overwrite=overwrite, resume=resume)
    course = _Course(config, stage_arguments(config, path), folder, say)
    try:
        with Stopping(), folder:
            course.go()
    except Stopped as stop:
        raise course.interrupted(stop) from stop
    except Interrupted as error:
        raise Interrupted(
            f"{course.stage}: {error.what}", course.way_on(), number=error.number, checkpoint=error.checkpoint
        ) from error
    return path


class _Course:
    """One run, from rows to the trained model.

    Attributes:
        doing, stage: what is under way, for the message of an interruption.
        record: what `run.json` is to say.
    """

    def __init__(self, config: RunConfig, args: StageArguments, folder: RunFolder, say: Say) -> None:
        self.config, self.args, self.folder = config, args, folder
        self.say = say if is_main() else _silence
        self.doing, self.stage = "before the rows were read", ""
        self.record: dict[str, Any] = {
            "name": folder.path.name,
            "config": without_keys(config.model_dump(mode="json")),
            "settings": {
                stage: without_keys(effective_settings(own)) for stage, own in args.stages().items()
            },
            "environment": environment(),
        }

    def go(self) -> None:
        """Everything, in its order. What may refuse the run comes before what changes its folder."""
        before, path = self.folder.record, self.folder.path
        if self.folder.resume and before is None:
            self.say(f"'{path}' holds no run to go on with: a new one begins")
        if before is not None:
            require_same(before, self.record, path)
            once(lambda: require_saved(before, {stage: self._final(stage) for stage in self.args.stages()}))
            if "finished" in before:
                self.say(f"'{path}' holds this run, finished ({before['finished']}): nothing is left to do")
                return
        ahead = {
            stage: args
            for stage, args in self.args.stages().items()
            if before is None or saved_digest(before, stage) is None
        }
        once(lambda: require_room(self.config, ahead, path))
        self.doing = "while the rows were prepared"
        rows = read_run_rows(self.config, self.args.sft, self.args.align)
        for line in rows.summary():
            self.say(line)
        require_held_out(rows, self.args.stages())
        self.record["data"] = rows.record() | self._data_commit()
        if self.config.model.name is not None:
            self.record["start"] = once(self._named_start)
        if before is not None:
            require_same(before, self.record, path)
        self._claim(before)
        once(lambda: rows.intake.require(self.config.data.validation, path / QUARANTINE))
        stages = prepare_stages(rows, self.args.sft, self.args.align, path / QUARANTINE, self.say)
        self.doing = "while the model to start from was made"
        start = self._start(rows, before)
        for stage in self.args.stages():
            start = self._run_stage(stage, start, stages, rows)
        self.record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._publish()
        self.say(f"trained model: {path / 'final'}")

    def interrupted(self, stop: Stopped) -> Interrupted:
        """What was stopped, what there is of it, and how to go on."""
        path, name = self.folder.path, signal.Signals(stop.number).name
        what = f"interrupted by {name} {self.doing}; "
        if not self.folder.claimed:
            return Interrupted(f"{what}nothing was changed", "start it again", number=stop.number)
        done = [stage for stage in self.args.stages() if saved_digest(self.record, stage) is not None]
        held = [f"the finished stage {stage}" for stage in done]
        checkpoint = None
        for stage in (stage for stage in self.args.stages() if stage not in done):
            if saved := CheckpointStore(path / stage).checkpoints():
                checkpoint = saved[-1]
                held.append(f"the checkpoint '{checkpoint}'")
        what += f"'{path}' holds {' and '.join(held) or 'no checkpoint yet'}"
        return Interrupted(what, self.way_on(), number=stop.number, checkpoint=checkpoint)

    def way_on(self) -> str:
        """The command that goes on."""
        instead = " in place of --overwrite" if self.folder.overwrite else ""
        return f"go on with the same command and --resume{instead}"

    # ---- the folder and its record

    def _claim(self, before: dict[str, Any] | None) -> None:
        """Make the folder this run's, with a record that says so."""
        aside = self.folder.claim()
        if aside is not None:
            self.say(f"moved the run that was there to {aside}")
        if before is not None:
            resumed = [*before.get("resumed", ()), self.record["environment"]]
            self.record = before | {key: self.record[key] for key in ("config", "settings")}
            self.record["resumed"] = resumed
        else:
            self.record |= {"stages": {}, "verdicts": []}
        self._publish()
        if is_main():  # it is written anew from the rows
            (self.folder.path / QUARANTINE).unlink(missing_ok=True)

    def _publish(self) -> None:
        if is_main():
            write_record(self.record, self.folder.path / RECORD)

    def _final(self, stage: str) -> Path:
        """Where a stage's trained model goes."""
        last = stage == "align" or self.args.align is None
        return self.folder.path / "final" if last else self.folder.path / stage / "final"

    # ---- the model to start from

    def _named_start(self) -> dict[str, Any]:
        """The named model by its content: a folder's digest, or the commit on the hub."""
        name = self.config.model.name
        assert name is not None
        folder = Path(name).expanduser()
        if folder.is_dir():
            return {"name": name, "digest": folder_digest(folder)}
        return {"name": name, "commit": hub_commit("model", name, self.config.model.revision)}

    def _data_commit(self) -> dict[str, Any]:
        """The commit of rows from the hub."""
        data = self.config.data
        if Path(data.source).expanduser().exists():
            return {}
        return {"commit": once(lambda: hub_commit("dataset", data.source, data.revision))}

    def _start(self, rows: RunRows, before: dict[str, Any] | None) -> str:
        """The model to start from: as named, or made from scratch for the tokenizer."""
        if self.config.model.name is not None:
            return self.config.model.name
        scratch, out = self.config.model.from_scratch, self.folder.path / "start"
        assert scratch is not None
        if before is None or "start" not in before:
            tokenizer = rows.tokenizer
            model = tiny_model(
                scratch.family,
                len(tokenizer),
                hidden_size=scratch.hidden_size,
                layers=scratch.layers,
                seed=self.config.seed,
                max_position_embeddings=max(2048, self.config.data.max_length),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            saved = _save_model(model, tokenizer, out)
            parameters = f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens"
            self.say(f"from scratch: {scratch.family}, {parameters}")
            self.record["start"] = {"name": "start", "digest": saved["digest"]}
            self._publish()
        else:
            require_same(before, self.record | {"start": once(lambda: _start_of(out))}, self.folder.path)
        return str(out)

    # ---- the stages

    def _run_stage(self, stage: str, start: str, stages: dict[str, Any], rows: RunRows) -> str:
        """Train, measure and save one stage; returns where the next one starts."""
        out = self._final(stage)
        if saved_digest(self.record, stage) is not None:
            self.say(f"{stage}: finished before")
            return str(out)
        self.doing, self.stage = f"while the model was made ready for {stage}", stage
        trainer_class: Any = SFTTrainer if stage == "sft" else PreferenceTrainer
        args = getattr(self.args, stage)
        if args.trust_remote_code and start != self.config.model.name:
            # this run's own copy of the code that was pinned
            args.model_revision = code_digest(Path(start))
        try:
            trainer = trainer_class(
                model=start,
                args=args,
                train_dataset=stages[stage],
                eval_dataset=stages.get(f"{stage}, held out"),
                processing_class=rows.tokenizer,
                peft_config=self.config.adapter.model_dump() if self.config.adapter is not None else None,
                callbacks=[MetricsFile(self.folder.path / METRICS, stage)],
            )
        except HoldfastError:
            if start == self.config.model.name:
                self.folder.take_back()  # the named model is not one to train, and the next try is another run
            raise
        result = self._fine_tune(trainer) if stage == "sft" else self._align(trainer)
        self.record["stages"][stage] = result
        self._publish()  # what was measured outlives a failure to save
        self.doing = f"while the model of {stage} was saved"
        result["saved"] = self._save(trainer, out)
        self._publish()
        return str(out)

    def _fine_tune(self, trainer: SFTTrainer) -> dict[str, Any]:
        """Train, and measure the held-out demonstrations."""
        result = self._train(trainer, "sft")
        if trainer.percentiles is not None and trainer.measured is not None:
            result["percentiles"] = list(trainer.percentiles.values)
            result["objective"] = objective_spec(trainer.measured)
        if trainer.eval_dataset is not None:
            self.doing = "while held-out rows were measured after sft"
            measured = trainer.evaluate()
            result["held_out"] = {name.removeprefix("eval_"): value for name, value in measured.items()}
        return result

    def _align(self, trainer: PreferenceTrainer) -> dict[str, Any]:
        """Train, and score the held-out pairs before and after."""
        held_out = trainer.eval_dataset
        before = self._scores_before(trainer) if held_out is not None else None
        result = self._train(trainer, "align")
        result["held_out"] = {"changes": [], "verdict": ["Not measured: there are no held-out pairs."]}
        if before is not None:
            self.doing = "while held-out pairs were scored after align"
            measured = changes(
                before, score_pairs(trainer, held_out, "held-out pairs after"), self.config.seed
            )
            result["held_out"] = {"changes": as_record(measured), "verdict": verdict(measured)}
        self.record["verdicts"] = result["held_out"]["verdict"]
        for line in [change["sentence"] for change in result["held_out"]["changes"]] + self.record[
            "verdicts"
        ]:
            self.say(line)
        return result

    def _scores_before(self, trainer: PreferenceTrainer) -> PairScores:
        """The held-out pairs' scores by the model that alignment starts from: kept by an earlier start, or measured."""
        self.doing = "while held-out pairs were scored before align"
        path = self.folder.path / SCORES
        kept = once(lambda: load_scores(path, self.record.get("held_out_before")))
        if kept is not None:
            return kept
        scores = score_pairs(trainer, trainer.eval_dataset, "held-out pairs before")
        self.record["held_out_before"] = once(lambda: save_scores(scores, path))
        self._publish()
        return scores

    def _train(self, trainer: LeanTrainer, stage: str) -> dict[str, Any]:
        self.doing = f"in {stage}"
        output = train_with_progress(
            trainer, stage, resume="auto" if self.folder.record is not None else None
        )
        return {
            "steps": output.global_step,
            "training_loss": output.training_loss,
            "seconds": output.metrics["train_runtime"],
            "rows": {name: prepared.report for name, prepared in trainer.prepared.items()},
            "padding_free": trainer.padding_free,
            "shared_prefix": getattr(trainer, "shared_prefix", None),
            "head": trainer.head,
            "last": next((log for log in reversed(trainer.state.log_history) if "loss" in log), None),
        }

    def _save(self, trainer: LeanTrainer, out: Path) -> dict[str, Any]:
        """Merge, save and check; then let go of the model, so that the next stage has the memory."""
        save_dtype = self.config.model.save_dtype
        saved = _save_model(
            trainer.whole_model(),
            trainer.processing_class,
            out,
            dtype=DTYPES[save_dtype] if save_dtype != "auto" else None,
            stop_token_ids=trainer.prepared["train"].end_tokens,
        )
        trainer.model = trainer.model_wrapped = trainer.optimizer = None
        trainer.accelerator.free_memory()
        gc.collect()
        return saved


def _silence(line: str) -> None:
    """What processes other than the first say."""


def _start_of(folder: Path) -> dict[str, Any]:
    return {"name": folder.name, "digest": folder_digest(folder) if folder.is_dir() else "none"}


def _save_model(model: Any, tokenizer: Any, out: Path, **options: Any) -> dict[str, Any]:
    """Save on the first process; every process goes on once the folder is there."""

    def save() -> dict[str, Any]:
        if out.exists():  # of an earlier start that was killed before it could say so in the record
            shutil.rmtree(out)
        exported = save_final(model, tokenizer, out, **options)
        return {"dtype": exported.dtype, "drift": exported.drift, "digest": folder_digest(out)}

    return once(save)
