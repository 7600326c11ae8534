"""A Slurm cluster of one node, for tests: commands that run what they are given, here and now."""

from __future__ import annotations

import os
from pathlib import Path

SCRIPTS = {
    # As many tasks as the job asks for, as srun starts them; their ids are where a test finds them.
    "srun": """
while [[ $1 == --* ]]; do
  case $1 in --output) out=$2; shift 2;; --error) err=$2; shift 2;; *) shift;; esac
done
folder=$FAKE_SLURM/$SLURM_JOB_ID
tasks=$(sed -n 's/^#SBATCH --ntasks-per-node=//p' $folder/job.sh)
export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=$tasks SLURM_JOB_NODELIST=localhost SLURM_NODEID=0
export SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=$tasks SLURM_STEP_NODELIST=localhost
out=${out//%j/$SLURM_JOB_ID} err=${err//%j/$SLURM_JOB_ID}
for ((k = 0; k < tasks; k++)); do
  SLURM_PROCID=$k SLURM_LOCALID=$k "$@" >> ${out//%t/$k} 2>> ${err//%t/$k} &
  echo $! >> $folder/tasks
done
wait
""",
    # A folder for each job, named by the first number that is free: of jobs that are submitted at
    # the same time one alone can make it.
    "sbatch": """
job=$FIRST_JOB
until mkdir $FAKE_SLURM/$job 2> /dev/null; do job=$((job + 1)); done
folder=$FAKE_SLURM/$job
cp "${@: -1}" $folder/job.sh
SLURM_JOB_ID=$job bash $folder/job.sh > $folder/log 2>&1 &
echo Submitted batch job $job
""",
    # As with a real one, the job waits for what is left of it, and inherits nothing from who asks.
    "scontrol": """
echo "$@" >> $FAKE_SLURM/requeued
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT
export SLURM_RESTART_COUNT=1
folder=$FAKE_SLURM/${@: -1}
again() {
  for task in $(cat $folder/tasks); do
    while kill -0 $task 2> /dev/null; do sleep 0.2; done
  done
  exec bash $folder/job.sh
}
again > $folder/log 2>&1 &
""",
    "sacct": """
echo 'JobID|State|NodeList'
for folder in $FAKE_SLURM/*/; do echo "$(basename $folder)|RUNNING|localhost"; done
""",
}


def fake_slurm(folder: Path) -> dict[str, str]:
    """The environment of somebody with such a cluster; what it knows of a job is in
    ``folder/<id>``. The first one's id is that of this process."""
    folder.mkdir()
    for name, script in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    return {
        "FAKE_SLURM": str(folder),
        "FIRST_JOB": str(os.getpid()),  # torch's port comes of it
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }
