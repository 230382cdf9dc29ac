"""Free memory in containers and batch jobs, from files as the kernel writes them."""

import pytest

from medsam2_ft.training.host_memory import free_host_memory

GB = 10**9


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.fixture
def kernel(tmp_path):
    """A machine with 20 GB to spare; (proc, cgroups)."""
    write(tmp_path / "proc", meminfo=f"MemTotal: 99 kB\nMemAvailable: {20 * GB // 1024} kB")
    return tmp_path / "proc", tmp_path / "cgroup"


def test_the_machine_itself(kernel):
    assert free_host_memory(*kernel) == pytest.approx(20 * GB, rel=1e-3)
    assert free_host_memory(kernel[1], kernel[1]) is None
    assert free_host_memory() is None or free_host_memory() > 0


def test_cgroup_2_takes_the_tightest_group_and_counts_cached_files_as_free(kernel):
    proc, cgroups = kernel
    write(proc / "self", cgroup="0::/job_7/step_0")
    job, step = cgroups / "job_7", cgroups / "job_7" / "step_0"
    write(job, memory__max=8 * GB, memory__current=5 * GB, memory__stat=f"anon 1\ninactive_file {GB}")
    write(step, memory__max="max", memory__current=5 * GB, memory__stat="inactive_file 0")
    assert free_host_memory(proc, cgroups) == 4 * GB
    write(step, memory__max=6 * GB)
    assert free_host_memory(proc, cgroups) == 1 * GB
    write(step, memory__max=4 * GB)
    assert free_host_memory(proc, cgroups) == 0


def test_cgroup_1_and_a_container_that_shows_its_own_group_as_the_root(kernel):
    proc, cgroups = kernel
    write(proc / "self", cgroup="8:memory:/docker/abc\n7:cpu,cpuacct:/docker/abc\n0::/")
    stat = "total_inactive_file 0"
    write(cgroups / "memory", memory__limit_in_bytes=3 * GB, memory__usage_in_bytes=GB, memory__stat=stat)
    assert free_host_memory(proc, cgroups) == 2 * GB
    write(cgroups / "memory", memory__limit_in_bytes=2**63 - 4096)
    assert free_host_memory(proc, cgroups) == pytest.approx(20 * GB, rel=1e-3)
