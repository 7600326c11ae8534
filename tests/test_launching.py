"""What a process learns from its launcher, and the jobs of a sweep before and after they run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flamingo.composition import CONF, compose, register
from flamingo.config import RunConfig
from flamingo.launching import circumstances_of_launch, first_host, process_environment
from flamingo.runs import load_run
from flamingo.sweeps import check_folders, compose_jobs
from flamingo.training.tracking import VARYING, read_metrics
from tests.fake_slurm import fake_slurm
from tests.tiny_world import save_world

ROOT = Path(__file__).parents[1]
SLURM = {
    "SLURM_JOB_ID": "41",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[09,12]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
"""Of the sixth of eight tasks on two nodes, as srun sets them."""


# ---------------------------------------------------------------------------- places


def test_a_task_of_srun_finds_its_place_and_the_first_node():
    assert process_environment(SLURM) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu09",
        "MASTER_PORT": "20041",
    }


def test_a_task_of_submitits_local_executor_finds_its_place():
    names = {"NTASKS": "2", "GLOBALID": "1", "LOCALID": "1", "JOB_ID": "70001"}
    found = process_environment({f"SUBMITIT_LOCAL_{name}": value for name, value in names.items()})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "2", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "30001")


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"RANK": "0"},  # torchrun in a task
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "41"},  # the batch script
    ],
)
def test_a_process_alone_or_placed_already_is_left_as_it_is(environment):
    assert process_environment(environment) == {}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu3", "gpu3"),
        ("gpu3,gpu4", "gpu3"),
        ("gpu[01-03,07],cpu2", "gpu01"),
        ("rack[2,4]-node[10-12].hpc", "rack2-node10.hpc"),
    ],
)
def test_the_first_host_of_a_node_list(nodes, first):
    assert first_host(nodes) == first


def test_provenance_names_the_launcher_and_the_job():
    found = circumstances_of_launch(SLURM | {"SUBMITIT_EXECUTOR": "slurm"})
    assert (found["launcher"], found["slurm_job"]) == ("submitit, slurm", "41")
    assert circumstances_of_launch(SLURM)["launcher"] == "srun"
    elastic = {"TORCHELASTIC_RUN_ID": "none"}
    assert circumstances_of_launch(elastic)["launcher"] == "torchrun"
    by_accelerate = elastic | {"ACCELERATE_MIXED_PRECISION": "no"}
    assert circumstances_of_launch(by_accelerate)["launcher"] == "accelerate"
    assert circumstances_of_launch({}).keys() == {"host"}


# ---------------------------------------------------------------------------- jobs of a sweep


def jobs(*overrides: str):
    register(RunConfig)
    return compose_jobs(["experiment=quickstart", *overrides], RunConfig, "config", CONF, ())


def test_every_job_of_a_sweep_has_a_folder_of_its_own():
    name = "name=q-${hydra:runtime.choices.ablation}"
    made = jobs("seed=0,1", "ablation=no_gates,latents_1", name)
    assert sorted(str(job.config.directory) for job in made) == [
        f"runs/q-{ablation}/seed={seed}"
        for ablation in ("latents_1", "no_gates")
        for seed in (0, 1)
    ]
    check_folders(made, lambda config: config.directory)


def test_jobs_that_would_share_a_folder_are_refused_with_a_name_that_tells_them_apart():
    made = jobs("seed=0,1", "training.lr=1e-3,1e-4")
    expected = (
        r"runs/quickstart/seed=0 for both seed=0 training.lr=0.001 and seed=0 training.lr=0.0001; "
        r".*'name=quickstart-\$\{training.lr\}'"
    )
    with pytest.raises(ValueError, match=expected):
        check_folders(made, lambda config: config.directory)
    check_folders(
        jobs("seed=0,1", "training.lr=1e-3,1e-4", "name=quickstart-${training.lr}"),
        lambda config: config.directory,
    )


def test_a_mistake_in_a_later_job_is_found_before_the_first_starts():
    with pytest.raises(ValueError, match=r"job training.warmup_steps=5000: training.warmup_steps"):
        jobs("training.warmup_steps=1,5000")


def test_a_glob_over_a_group_is_a_sweep():
    assert len(jobs("ablation=glob(latents_*)", "name=${hydra:runtime.choices.ablation}")) == 4


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_a_launcher_changes_nothing_of_the_run(launcher):
    assert compose(["experiment=quickstart", f"launcher={launcher}"]) == compose(
        ["experiment=quickstart"]
    )


# ---------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


def command(world: Path, runs: Path, *overrides: str) -> list[str]:
    return [
        *(sys.executable, "experiments/train.py", f"runs={runs}"),
        *(f"vision.name={world / 'vision'}", f"language.name={world / 'language'}"),
        *("model.resampler.depth=1", "model.resampler.heads=2", "model.cross_attention.heads=2"),
        *("data.easy_vqa.sequences=4", "training.precision=fp32", "training.log_every=1"),
        *("training.steps=4", "training.warmup_steps=0", *overrides),
    ]


def environment(world: Path, **more: str) -> dict[str, str]:
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    own |= {"FLAMINGO_CACHE": str(world / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "ACCELERATE_USE_CPU": "true", **more}


def run(world: Path, runs: Path, *overrides: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(world, runs, *overrides),
        cwd=ROOT,
        env=environment(world, **more),
        capture_output=True,
        text=True,
        timeout=300,
    )


def metrics(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in entry.items() if not name.startswith(VARYING)}
        for entry in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.slow
def test_a_failing_job_leaves_the_others_and_a_finished_one_is_passed_over(world, tmp_path):
    sweep = ("-m", "name=run-${data.easy_vqa.pairs}", "data.easy_vqa.pairs=1000,1,2")
    first = run(world, tmp_path, *sweep, "data.max_tokens=200")
    assert first.returncode == 1
    assert "1 of the jobs failed" in first.stderr and "data.easy_vqa.pairs=1000" in first.stderr
    assert not list((tmp_path / "run-1000").rglob("step_*"))
    assert all(load_run(tmp_path / f"run-{n}" / "seed=0").checkpoints == [4] for n in (1, 2))
    again = run(world, tmp_path, *sweep, "data.max_tokens=200")
    assert again.returncode == 1 and again.stdout.count("finished, 4 steps are done") == 2
    assert len(load_run(tmp_path / "run-1" / "seed=0").provenance["launches"]) == 1


@pytest.mark.slow
def test_jobs_of_the_local_launcher_equal_a_run_without_it(world, tmp_path):
    """Two jobs of two processes each, beside a single process."""
    plain = run(world, tmp_path, "name=plain")
    assert plain.returncode == 0, plain.stderr
    two = "hydra.launcher.tasks_per_node=2"
    done = run(world, tmp_path, "name=launched", "launcher=local", two, "seed=0,1")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "launched"
    for one, other in zip(
        metrics(folder / "seed=0"), metrics(tmp_path / "plain" / "seed=0"), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert load_run(folder / "seed=1").checkpoints == [4]
    (launch,) = load_run(folder / "seed=0").provenance["launches"]
    assert (launch["processes"], launch["launcher"]) == (2, "submitit, local")
    assert {"name=launched", "seed=0"} <= set(launch["overrides"])
    assert sorted((tmp_path / ".sweeps").glob("*/*_log.out"))


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_ends_as_if_nothing_had_happened(world, tmp_path):
    longer = ("training.steps=60", "training.checkpoint_every=1000", "training.schedule=constant")
    straight = run(world, tmp_path, "name=straight", *longer)
    assert straight.returncode == 0, straight.stderr
    job = subprocess.Popen(
        command(world, tmp_path, "name=preempted", "launcher=local", *longer),
        cwd=ROOT,
        # With TERM for the launcher's signal: its USR2 and training's are another matter.
        env=environment(world, SUBMITIT_PREEMPT_SIGNAL="TERM"),
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "preempted" / "seed=0"
    while len(read_metrics(folder / "metrics.jsonl")) < 5:
        time.sleep(0.05)
        assert job.poll() is None, job.stderr and job.stderr.read()
    (submitted,) = (tmp_path / ".sweeps").glob("*/*_submitted.pkl")
    controller = int(submitted.parent.name)  # the local executor's job id: it passes signals on
    os.kill(controller, signal.SIGTERM)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    first, second = load_run(folder).provenance["launches"]
    assert first["from_step"] == 0 and 5 <= second["from_step"] < 60
    assert metrics(folder) == metrics(tmp_path / "straight" / "seed=0")


LAUNCHERS = {
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_machines=1",
                   "--num_processes=2", "--mixed_precision=no", "--dynamo_backend=no"),
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc_per_node=2"),
}  # fmt: skip
"""As docs/launching.md starts two processes on CPUs."""


@pytest.mark.slow
def test_two_processes_equal_one_whoever_starts_them(world, tmp_path):
    plain = run(world, tmp_path, "name=plain")
    assert plain.returncode == 0, plain.stderr
    for name, module in LAUNCHERS.items():
        python, *rest = command(world, tmp_path, f"name={name}")
        done = subprocess.run(
            [python, "-m", *module, *rest],
            cwd=ROOT,
            env=environment(world),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        folder = tmp_path / name / "seed=0"
        for one, other in zip(metrics(folder), metrics(tmp_path / "plain" / "seed=0"), strict=True):
            assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
        (launch,) = load_run(folder).provenance["launches"]
        assert (launch["processes"], launch["launcher"]) == (2, name)


@pytest.mark.slow
def test_a_slurm_job_of_two_processes_is_preempted_queued_again_and_continues(world, tmp_path):
    longer = ("training.steps=40", "training.checkpoint_every=1000", "training.schedule=constant")
    cluster, number = tmp_path / "cluster", str(os.getpid())
    slurm = ("launcher=slurm", "hydra.launcher.gpus_per_node=2", "hydra.launcher.partition=gpu")
    job = subprocess.Popen(
        command(world, tmp_path, "name=slurm", *slurm, *longer),
        cwd=ROOT,
        env=environment(world, SUBMITIT_PREEMPT_SIGNAL="TERM", **fake_slurm(cluster)),
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "slurm" / "seed=0"
    while len(read_metrics(folder / "metrics.jsonl")) < 5:
        time.sleep(0.05)
        assert job.poll() is None, job.stderr and job.stderr.read()
    for task in (cluster / number / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    _, said = job.communicate(timeout=300)
    assert job.returncode == 0, said
    assert (cluster / "requeued").read_text() == f"requeue {number}\n"
    header = (cluster / number / "job.sh").read_text()
    for line in (
        "--gpus-per-node=2",
        "--ntasks-per-node=2",
        "--partition=gpu",
        "--signal=TERM@300",
    ):
        assert f"#SBATCH {line}\n" in header
    first, second = load_run(folder).provenance["launches"]
    assert (first["processes"], second["slurm_restarts"]) == (2, "1")
    assert first["slurm_job"] == second["slurm_job"] == number
    assert 5 <= second["from_step"] < 40
    assert [entry["step"] for entry in metrics(folder)] == list(range(1, 41))


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With each float to six digits."""
    return json.loads(json.dumps(rows), parse_float=lambda number: round(float(number), 6))


@pytest.mark.slow
def test_slurms_tasks_evaluate_a_run_together(world, tmp_path):
    settings = (
        "evaluation.shots=[0,1]",
        "evaluation.easy_vqa.queries=6",
        "evaluation.binding=null",
    )
    for name in ("alone", "together"):
        trained = run(world, tmp_path, f"name={name}", *settings)
        assert trained.returncode == 0, trained.stderr
    folders = [tmp_path / name / "seed=0" for name in ("alone", "together")]
    evaluate = [sys.executable, "experiments/evaluate.py"]
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_NODEID": "0"}
    step |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid())}
    tasks = [{}, *({**step, "SLURM_PROCID": k, "SLURM_LOCALID": k} for k in "01")]
    started = [
        subprocess.Popen(
            [*evaluate, f"run={folder}"],
            cwd=ROOT,
            env=environment(world, **task),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, task in zip([folders[0], folders[1], folders[1]], tasks, strict=True)
    ]
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    alone, together = (load_run(folder) for folder in folders)
    # Batches are put together otherwise: probabilities agree but for rounding.
    scores, others = (rounded(one.results["model"]) for one in (alone, together))
    assert scores == others
    assert together.results["timing"]["new_predictions"] == len(together.predictions())
