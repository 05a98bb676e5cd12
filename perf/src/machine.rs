//! The machine that is measured on: what it is, how busy it is, and what its CPUs did.

use std::fmt;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;

use crate::interrupt;
use crate::report::progress;

/// How long others are watched before a run.
const LOOK_AROUND: Duration = Duration::from_millis(700);

/// Beside one compiler on two cores, Viaduct's worker lost three of four packets of 64 bytes: it
/// needs a core of its own, and the pods need another.
const DISTURBING_CORES: f64 = 0.15;

/// Names of the workers' threads start with this.
const WORKER: &str = "worker-";

/// What figures have to be read beside.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Name of the CPU.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Cores that other programs kept busy before the run.
    pub others_busy_cores: f64,
}

impl Machine {
    /// Looks around.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn look() -> Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let cpuinfo = read("/proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let before = CpuTimes::now()?;
        interrupt::pause(LOOK_AROUND)?;
        let others_busy_cores = CpuTimes::now()?.since(before).busy_cores();
        if others_busy_cores > DISTURBING_CORES {
            progress(&format!(
                "others keep {others_busy_cores:.1} cores busy: these figures say little"
            ));
        }
        Ok(Machine {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: model.unwrap_or("unknown").trim_start_matches(['\t', ' ', ':']).to_owned(),
            cores: usable_cores()?.len(),
            others_busy_cores,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { kernel, cpu, cores, others_busy_cores: others } = self;
        write!(out, "Linux {kernel}, {cores} cores of {cpu}, others kept {others:.2} of them busy")
    }
}

/// Numbers of the cores that this process may use, lowest first.
///
/// # Errors
/// When the kernel does not tell.
pub fn usable_cores() -> Result<Vec<usize>> {
    let usable = sched_getaffinity(None).context("read the CPU affinity")?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| usable.is_set(*core)).collect())
}

/// Time of all CPUs since the machine started, in ticks of 10 ms (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuTimes {
    /// Neither idle nor waiting nor stolen.
    pub busy: u64,
    /// Taken by other guests of the hypervisor.
    pub steal: u64,
    /// All of it.
    pub total: u64,
}

/// A tick of /proc/stat, in ns (USER_HZ is 100 on all of Linux's common architectures).
pub const TICK_NS: u64 = 10_000_000;

impl CpuTimes {
    /// Until now.
    ///
    /// # Errors
    /// When /proc/stat cannot be read.
    pub fn now() -> Result<CpuTimes> {
        let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        Ok(CpuTimes::parse(&text))
    }

    fn parse(stat: &str) -> CpuTimes {
        let first = stat.lines().next().unwrap_or("");
        // user nice system idle iowait irq softirq steal; guest time is in user already.
        let ticks: Vec<u64> =
            first.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
        let [user, nice, system, idle, iowait, irq, softirq, steal] = ticks[..] else {
            return CpuTimes::default();
        };
        let busy = user + nice + system + irq + softirq;
        CpuTimes { busy, steal, total: busy + idle + iowait + steal }
    }

    /// What passed since `before`.
    pub fn since(self, before: CpuTimes) -> CpuTimes {
        CpuTimes {
            busy: self.busy.saturating_sub(before.busy),
            steal: self.steal.saturating_sub(before.steal),
            total: self.total.saturating_sub(before.total),
        }
    }

    /// How many cores were busy on average.
    pub fn busy_cores(self) -> f64 {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        all as f64 * self.busy as f64 / self.total.max(1) as f64
    }

    /// Share of time that was stolen, in percent. Above 2 a turn says little.
    pub fn steal_percent(self) -> f64 {
        100.0 * self.steal as f64 / self.total.max(1) as f64
    }
}

/// CPU time so far of every thread that a process has: its name, and ns on a CPU
/// (Documentation/scheduler/sched-stats.rst, "/proc/PID/schedstat").
///
/// # Errors
/// When the process is gone.
pub fn thread_times(pid: u32) -> Result<Vec<(String, u64)>> {
    let tasks = format!("/proc/{pid}/task");
    let mut times = Vec::new();
    for entry in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
        let task = entry?.path();
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        // A thread may end while the list is read.
        let Ok(stat) = fs::read_to_string(task.join("schedstat")) else { continue };
        let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        times.push((name.trim().to_owned(), ns));
    }
    Ok(times)
}

/// CPU time so far of all workers of a daemon, in ns.
///
/// # Errors
/// When the process is gone.
pub fn worker_ns(daemon: u32) -> Result<u64> {
    let threads = thread_times(daemon)?;
    Ok(threads.iter().filter(|(name, _)| name.starts_with(WORKER)).map(|(_, ns)| ns).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_times_leave_out_idle_waiting_and_stolen_time() {
        let times = CpuTimes::parse("cpu  1 2 3 100 50 4 5 10 0 0\ncpu0 1 2 3 4\n");
        assert_eq!(times, CpuTimes { busy: 15, steal: 10, total: 175 });
    }

    #[test]
    fn a_short_line_is_no_time_at_all() {
        assert_eq!(CpuTimes::parse("cpu 1 2 3"), CpuTimes::default());
    }

    #[test]
    fn this_process_has_a_thread_that_ran() {
        let times = thread_times(std::process::id()).expect("read");
        assert!(times.iter().any(|(_, ns)| *ns > 0));
    }
}
