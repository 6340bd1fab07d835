"""The scripts of launch/ say what they would run, and it is one command."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
import yaml

from r1jax.tools.plan import chips, slices

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = [
  "--config=experiments/demo.py",
  "--workdir=/data/it's a run",
  '--config.template=a "quoted" $(HOME) $$ \\n',
]
ARGUMENTS = {
  "tpu.sh": ["pod", "us-east5-a"],
  "gke.sh": ["r1", "image", "v5p:4x4x4"],
  "slurm.sh": ["gpu", "4", "8"],
  "mpi.sh": ["4"],
}
BESIDE = os.pathsep.join([os.path.dirname(sys.executable), os.defpath])
SHELLCHECK = shutil.which("shellcheck", path=BESIDE)
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
SETTINGS = ("PYTHON", "CLAIM", "NODES", "GRACE", "CPUS", "SBATCH_FLAGS")


def run(script, *arguments, **env):
  inherited = {k: v for k, v in os.environ.items() if k not in SETTINGS}
  return subprocess.run(
    [ROOT / "launch" / script, *arguments],
    capture_output=True,
    text=True,
    env=inherited | env,
  )


def shown(script, *arguments, **env):
  """What a dry run prints."""
  done = run(script, "--dry-run", *arguments, **env)
  assert done.returncode == 0, done.stderr
  return done.stdout


def manifest(*arguments, **env):
  """The JobSet of gke.sh: itself, and the jobs and pods that it makes."""
  jobset = yaml.safe_load(shown("gke.sh", *arguments, *FLAGS, **env))
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  return jobset, replicated, job, job["template"]["spec"]


def command_lines(text):
  """The words of each line of a script."""
  return [shlex.split(line, comments=True) for line in text.splitlines()]


def test_there_is_a_case_for_every_script():
  assert {path.name for path in SCRIPTS} == ARGUMENTS.keys()


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_a_dry_run_shows_the_one_command(script):
  if script == "gke.sh":
    (container,) = manifest(*ARGUMENTS[script])[-1]["containers"]
    words = [word.replace("$$", "$") for word in container["command"]]
  else:
    text = shown(script, *ARGUMENTS[script], *FLAGS)
    if script == "tpu.sh":
      (remote,) = [line[-1] for line in command_lines(text) if "ssh" in line]
      text = remote.removeprefix("--command=")
    (words,) = [line for line in command_lines(text) if "r1jax" in line]
    ends = [words.index(x) for x in ("||", ">>run.log") if x in words]
    words = words[: min(ends, default=None)]
  at = words.index("-m")
  assert words[at - 1].endswith("python")
  assert words[at:] == ["-m", "r1jax", "train", *FLAGS]


@pytest.mark.parametrize("script", sorted(ARGUMENTS))
def test_too_few_arguments_show_how_to_call(script):
  done = run(script)
  assert done.returncode == 2
  assert f"launch/{script}" in done.stderr
  assert "set -euo" not in done.stderr


@pytest.mark.skipif(not SHELLCHECK, reason="no shellcheck")
def test_shellcheck_finds_nothing():
  done = subprocess.run(
    [SHELLCHECK, *SCRIPTS, ROOT / ".ci" / "run"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


TOPOLOGIES = ("v4:4x4x8", "v5e:4x8", "v5p:8x8x8", "v6e:8x8*2", "v6e:1x1")


@pytest.mark.parametrize("topology", [*TOPOLOGIES, "tpu7x:4x4x4*3"])
def test_gke_starts_the_slices_of_a_plan(topology):
  jobset, replicated, job, pod = manifest("r1", "image", topology)
  names = slices.names(chips.topology(topology))
  exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
  annotations = jobset["metadata"]["annotations"]
  assert annotations == {exclusive: "cloud.google.com/gke-nodepool"}
  assert replicated["replicas"] == names["slices"]
  assert job["parallelism"] == job["completions"] == names["hosts"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": names["gke_accelerator"],
    "cloud.google.com/gke-tpu-topology": names["gke_topology"],
  }
  limits = pod["containers"][0]["resources"]["limits"]
  assert limits == {"google.com/tpu": names["chips_per_host"]}


def test_a_line_break_reaches_a_pod():
  jobset = shown("gke.sh", *ARGUMENTS["gke.sh"], "--config=a\nb: [c]")
  assert '"--config=a\\nb: [c]"]\n' in jobset
  yaml.safe_load(jobset)


def test_gke_restarts_all_but_wrong_input():
  jobset, _, job, pod = manifest(*ARGUMENTS["gke.sh"])
  (rule,) = job["podFailurePolicy"]["rules"]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
  assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
  assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
  policy = jobset["spec"]["failurePolicy"]
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert policy["maxRestarts"] > 0


def test_gke_takes_claims_labels_and_a_grace_period():
  *_, pod = manifest(*ARGUMENTS["gke.sh"])
  assert pod["terminationGracePeriodSeconds"] == 600
  assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "r1jax"
  assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/data"
  spot = "cloud.google.com/gke-spot=true a.com/b=c"
  *_, pod = manifest(*ARGUMENTS["gke.sh"], CLAIM="", NODES=spot, GRACE="15")
  assert pod["terminationGracePeriodSeconds"] == 15
  assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert pod["nodeSelector"]["a.com/b"] == "c"
  assert "volumes" not in pod and "env" not in pod["containers"][0]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_queued_resources_have_the_slices_of_a_plan(topology):
  text = shown("tpu.sh", "--create", "pod", "us-east5-a", topology, "--spot")
  (words,) = command_lines(text)
  names = slices.names(chips.topology(topology))
  assert f"--type={names['type']}" in words
  assert f"--topology={names['topology']}" in words
  several = ["--node-count=2", "--node-prefix=pod"]
  nodes = several if names["slices"] == 2 else ["--node-id=pod"]
  assert words[-len(nodes) - 1 :] == [*nodes, "--spot"]


@pytest.mark.parametrize(
  "script, arguments",
  [
    ("tpu.sh", ["--create", "pod", "us-east5-a"]),
    ("gke.sh", ["r1", "image"]),
  ],
)
@pytest.mark.parametrize("topology", ["h200:8x2", "v5p", "v5p:8", "v9:2x2"])
def test_what_is_no_slice_of_tpus_is_refused(script, arguments, topology):
  done = run(script, "--dry-run", *arguments, topology, "--config=x")
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith("error: ")


def test_slurm_gives_tasks_their_cores_and_time_to_save():
  flags = dict(CPUS="12", GRACE="900", SBATCH_FLAGS="--account=me --time=8:00")
  script = shown("slurm.sh", "gpu", "2", "8", *FLAGS, **flags)
  for line in (
    *("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8"),
    *("#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=12"),
    *("#SBATCH --signal=TERM@900", "#SBATCH --account=me --time=8:00"),
  ):
    assert line in script.splitlines()
  assert "\nexport SRUN_CPUS_PER_TASK=12 " in script
  assert "gpus" not in shown("slurm.sh", "cpu", "2", *FLAGS)


# The hosts of tpu.sh are one folder here; each command comes twice, as after a
# connection that broke.
GCLOUD = """#!/bin/bash
cd "$HOSTS"
command="${!#}"
for _ in 1 2; do sh -c "${command#--command=}"; done
"""
PYTHON = """#!/bin/bash
trap 'echo told to stop; sleep 0.5; exit 143' TERM
echo "$*"
for _ in {1..300}; do sleep 0.1; done
"""


def test_a_host_starts_a_run_once_and_tells_it_once_to_stop(tmp_path):
  host, beside = tmp_path / "r1jax", tmp_path / "bin"
  python = host / ".venv" / "bin" / "python"
  for file, text in (
    (beside / "gcloud", GCLOUD),
    (beside / "ssh-add", "#!/bin/sh\n"),
    (python, PYTHON),
  ):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
  path = f"{beside}{os.pathsep}{os.environ['PATH']}"

  def tpu(*arguments):
    done = run("tpu.sh", *arguments, PATH=path, HOSTS=str(tmp_path))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

  def log():
    return (host / "run.log").read_text().splitlines()

  def wait_until(true):
    end = time.monotonic() + 20
    while not true():
      assert time.monotonic() < end, log()
      time.sleep(0.05)

  def wait_for(line):
    wait_until(lambda: log()[-1:] == [line])

  started = "-m r1jax train --config=a.py --workdir=it's here"
  flags = "--config=a.py", "--workdir=it's here"
  assert tpu("--stop", "pod", "zone") == ["no run is here"] * 2
  tpu("pod", "zone", *flags)
  wait_for(started)
  assert tpu("pod", "zone", *flags) == ["a run is here already"] * 2
  assert tpu("--stop", "pod", "zone") == []
  wait_for("told to stop")
  wait_until(lambda: tpu("--stop", "pod", "zone") == ["no run is here"] * 2)
  assert log() == [started, "told to stop"]
  tpu("pod", "zone", *flags)  # It may be started again.
  wait_for(started)
  tpu("--stop", "pod", "zone")
  wait_for("told to stop")


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_images_install_what_the_project_has(kind):
  text = (ROOT / "launch" / f"Dockerfile.{kind}").read_text()
  base = re.search(r"^FROM python:(\d)\.(\d+)-slim$", text, re.MULTILINE)
  assert f"-c constraints/py{base[1]}{base[2]}.txt" in text
  assert (ROOT / "constraints" / f"py{base[1]}{base[2]}.txt").exists()
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = re.search(r'-e "\.\[(.*)\]"', text)[1].split(",")
  assert kind in extras
  assert {*extras} <= project["optional-dependencies"].keys()
  # The command of gke.sh finds experiments/ where it starts.
  assert text.index("\nWORKDIR /r1jax\nCOPY . .\n") > 0
