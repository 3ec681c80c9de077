"""A client of the test Hub in a process of its own: the libraries read HF_ENDPOINT and their caches at import."""

import os
import subprocess
import sys
import tempfile

WITHOUT_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "reid_hub":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def start_python(code: str, environment: dict[str, str], *arguments: str, package: bool = True) -> subprocess.Popen:
    """Start `python -c code` outside of the project with no HF_* variable but those given.

    With `package=False` reid_hub cannot be imported there, however it was installed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PYTHON"))}
    settings = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code if package else WITHOUT_PACKAGE + code, *arguments],
        env=inherited | settings | environment,
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,  # nobody there to answer whether to trust code
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_python(
    code: str, environment: dict[str, str], *arguments: str, package: bool = True, fails: bool = False
) -> str:
    """Run `python -c code`; return its stdout, or its stderr where it is expected to fail."""
    process = start_python(code, environment, *arguments, package=package)
    stdout, stderr = process.communicate(timeout=180)
    assert (process.returncode != 0) == fails, f"exit code {process.returncode}\n{stdout}\n{stderr}"
    return stderr if fails else stdout
