//! Finds out whether this process is one of several, from the variables that launchers set, and connects it to the
//! others.

use std::env;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use gelora_model::distributed::Processes;
use serde::Serialize;

/// Engines, by the features that compile them, and whether this build has them.
pub const ENGINES: [(&str, bool); 2] = [("mpi", cfg!(feature = "mpi")), ("nccl", cfg!(feature = "nccl"))];

/// A launcher of several processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Launcher {
    /// mpirun of Open MPI.
    #[serde(rename = "mpirun (Open MPI)")]
    OpenMpi,
    /// mpiexec of MPICH and its relatives, or srun with one of their interfaces.
    #[serde(rename = "mpiexec (PMI)")]
    Pmi,
    /// torchrun.
    #[serde(rename = "torchrun")]
    Torchrun,
    /// RANK and WORLD_SIZE without LOCAL_RANK, as Kubeflow's PyTorchJob sets them.
    #[serde(rename = "RANK and WORLD_SIZE (Kubeflow)")]
    Kubeflow,
    /// srun of SLURM without an MPI interface.
    #[serde(rename = "srun (SLURM)")]
    Slurm,
}

impl Launcher {
    /// The name on the screen.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi => "mpirun (Open MPI)",
            Self::Pmi => "mpiexec (PMI)",
            Self::Torchrun => "torchrun",
            Self::Kubeflow => "RANK and WORLD_SIZE (Kubeflow)",
            Self::Slurm => "srun (SLURM)",
        }
    }

    /// The variable that says how many processes there are.
    pub fn variable(self) -> &'static str {
        let sets = |(launcher, _): &&(Self, [&str; 4])| {
            *launcher == self || (self == Self::Kubeflow && *launcher == Self::Torchrun)
        };
        VARIABLES.iter().find(sets).map_or("", |(_, [_, world, ..])| *world)
    }

    /// The engine that connects the processes of this launcher.
    fn engine(self) -> Engine {
        match self {
            Self::OpenMpi | Self::Pmi => Engine::Mpi,
            Self::Slurm if cfg!(feature = "mpi") || !cfg!(feature = "nccl") => Engine::Mpi,
            Self::Slurm | Self::Torchrun | Self::Kubeflow => Engine::Nccl,
        }
    }
}

/// What connects processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Mpi,
    Nccl,
}

/// What a launcher says of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Launch {
    pub launcher: Launcher,
    /// Number of this process.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Number of this process among those of its machine.
    pub local_rank: Option<usize>,
    /// Number of processes on this machine.
    pub local_world: Option<usize>,
}

impl fmt::Display for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as process {} of {}", self.launcher.name(), self.rank, self.world)?;
        match (self.local_rank, self.local_world) {
            (Some(rank), Some(world)) => write!(f, ", {rank} of {world} on this machine"),
            (Some(rank), None) => write!(f, ", number {rank} on this machine"),
            (None, _) => f.write_str("; its number on this machine is not known (no LOCAL_RANK)"),
        }
    }
}

/// The processes of this run.
#[derive(Clone, Debug, Default)]
pub struct Group {
    pub processes: Processes,
    /// What the launcher says, if there are several.
    pub launch: Option<Launch>,
}

impl Group {
    /// Whether this process is the first one of its machine. Where the launcher does not tell, each is.
    pub fn is_first_of_machine(&self) -> bool {
        self.launch.and_then(|launch| launch.local_rank).is_none_or(|local_rank| local_rank == 0)
    }
}

/// Names of the variables of a launcher: rank, world, local rank, local world.
const VARIABLES: [(Launcher, [&str; 4]); 4] = [
    (
        Launcher::OpenMpi,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    (Launcher::Pmi, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    (Launcher::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    // SLURM_NTASKS is also set in a batch script, which is one process; SLURM_STEP_NUM_TASKS is set by srun alone.
    (Launcher::Slurm, ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"]),
];

impl Launch {
    /// Reads the variables of this process. Returns None if it was started alone.
    ///
    /// # Errors
    /// Returns an error if a launcher's variable is not a number, or the rank is not below the number of processes.
    pub fn of_environment() -> Result<Option<Self>> {
        Self::of(&|name| env::var(name).ok())
    }

    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = variable(name) else { return Ok(None) };
            match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => bail!("the variable {name} is {text:?}; expected a number"),
            }
        };
        for (launcher, [rank, world, local_rank, local_world]) in VARIABLES {
            if variable(rank).is_none() || variable(world).is_none() {
                continue;
            }
            let (Some(rank_of_process), Some(size)) = (number(rank)?, number(world)?) else { continue };
            if rank_of_process >= size {
                bail!("the variable {rank} is {rank_of_process} and {world} is {size}; expected a smaller {rank}");
            }
            if size == 1 {
                return Ok(None);
            }
            // SLURM writes "4(x2)" if machines differ; what is no number is not known.
            let optional = |name: &str| variable(name).and_then(|text| text.parse().ok());
            let local_rank = optional(local_rank);
            let launcher = match launcher {
                Launcher::Torchrun if local_rank.is_none() => Launcher::Kubeflow,
                other => other,
            };
            let local_world = optional(local_world);
            return Ok(Some(Self { launcher, rank: rank_of_process, world: size, local_rank, local_world }));
        }
        Ok(None)
    }

    /// Chooses the card and the number of threads of this process, unless the user did. Call it before anything starts
    /// a thread.
    pub fn share_the_machine(&self) {
        if let Some(local_rank) = self.local_rank
            && let Some(card) = card(local_rank, env::var("CUDA_VISIBLE_DEVICES").ok().as_deref(), cards())
        {
            // SAFETY: no other thread has begun.
            unsafe { env::set_var("CUDA_VISIBLE_DEVICES", card) };
        }
    }

    /// Number of threads of this process: its share of the CPUs, or None if the launcher bound it to some of them.
    pub fn threads(&self) -> Option<usize> {
        let of_process = std::thread::available_parallelism().ok()?.get();
        let of_machine = online_cpus()?;
        let local_world = self.local_world?;
        (of_process >= of_machine).then(|| (of_process / local_world).max(1))
    }

    /// Connects this process to the others.
    ///
    /// # Errors
    /// Returns an error if this build has no engine for the launcher, or the engine cannot connect them.
    pub fn connect(&self, timeout: Duration) -> Result<Processes> {
        let found = format!("{} started process {} of {}", self.launcher.name(), self.rank, self.world);
        let own = format!("; a run of its own has no variable {}", self.launcher.variable());
        match self.launcher.engine() {
            Engine::Mpi if !cfg!(feature = "mpi") => {
                bail!("{found}, and this build has no engine to connect them; expected one with --features mpi{own}")
            }
            Engine::Nccl if !cfg!(feature = "nccl") => bail!(
                "{found}, and this build has no engine to connect them: expected one with --features nccl and an \
                 NVIDIA GPU for each, or, with --features mpi, mpirun as the launcher{own}"
            ),
            Engine::Mpi => self.open_mpi(timeout, &found),
            Engine::Nccl => self.open_nccl(timeout),
        }
    }

    #[cfg(feature = "mpi")]
    fn open_mpi(&self, timeout: Duration, found: &str) -> Result<Processes> {
        let processes = Processes::new(gelora_model::distributed::Mpi::open(timeout)?);
        let (rank, world) = (processes.rank(), processes.world());
        if (rank, world) != (self.rank, self.world) {
            bail!(
                "{found}, but MPI has process {rank} of {world}: the launcher and the MPI library are not of one kind; \
                 expected the mpirun of the library that gelora was built with, or srun --mpi=pmix (Open MPI) or \
                 --mpi=pmi2 (MPICH)"
            );
        }
        Ok(processes)
    }

    #[cfg(not(feature = "mpi"))]
    fn open_mpi(&self, _: Duration, found: &str) -> Result<Processes> {
        bail!("{found}, and this build has no MPI");
    }

    #[cfg(feature = "nccl")]
    fn open_nccl(&self, timeout: Duration) -> Result<Processes> {
        let address = address(&|name| env::var(name).ok())?;
        let engine = gelora_model::distributed::Nccl::open(self.rank, self.world, &address, timeout)?;
        Ok(Processes::new(engine))
    }

    #[cfg(not(feature = "nccl"))]
    fn open_nccl(&self, _: Duration) -> Result<Processes> {
        bail!("this build has no NCCL");
    }
}

/// Where process 0 gives NCCL's identifier to the others. torchrun may listen at MASTER_PORT itself; then it is the
/// port after that.
#[cfg(any(feature = "nccl", test))]
fn address(variable: &dyn Fn(&str) -> Option<String>) -> Result<String> {
    let (Some(host), Some(port)) = (variable("MASTER_ADDR"), variable("MASTER_PORT")) else {
        bail!("the variables MASTER_ADDR and MASTER_PORT say where process 0 is; expected both");
    };
    let Ok(port) = port.parse::<u16>() else { bail!("the variable MASTER_PORT is {port:?}; expected a port") };
    let is_taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    Ok(format!("{host}:{}", port.saturating_add(u16::from(is_taken))))
}

/// The card of a process, as CUDA_VISIBLE_DEVICES names it: one of those in `visible`, or of the machine's. Returns
/// None if there is nothing to choose. Processes share cards if there are fewer.
fn card(local_rank: usize, visible: Option<&str>, cards: usize) -> Option<String> {
    match visible {
        Some(visible) => {
            let visible: Vec<&str> = visible.split(',').map(str::trim).filter(|card| !card.is_empty()).collect();
            (visible.len() > 1).then(|| visible[local_rank % visible.len()].to_owned())
        }
        None => (cards > 1).then(|| (local_rank % cards).to_string()),
    }
}

/// Number of NVIDIA cards of the machine.
fn cards() -> usize {
    std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count)
}

/// Number of CPUs of the machine, of which a process may be bound to some.
fn online_cpus() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
    };
    text.trim().split(',').map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::of(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    fn found(variables: &[(&str, &str)]) -> (Launcher, usize, usize, Option<usize>) {
        let launch = of(variables).unwrap().unwrap();
        (launch.launcher, launch.rank, launch.world, launch.local_rank)
    }

    #[test]
    fn launchers_are_told_by_their_variables() {
        let torchrun = [("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")];
        assert_eq!(found(&torchrun), (Launcher::Torchrun, 3, 8, Some(1)));
        assert_eq!(found(&torchrun[..2]), (Launcher::Kubeflow, 3, 8, None));
        let mpirun =
            [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")];
        // mpirun inside of a SLURM step, or started by a shell that has the variables of torchrun.
        assert_eq!(found(&[&mpirun[..], &torchrun].concat()), (Launcher::OpenMpi, 0, 2, Some(0)));
        let srun = [("SLURM_PROCID", "5"), ("SLURM_STEP_NUM_TASKS", "6"), ("SLURM_LOCALID", "1")];
        assert_eq!(found(&srun), (Launcher::Slurm, 5, 6, Some(1)));
        assert_eq!(found(&[&srun[..], &[("PMI_RANK", "5"), ("PMI_SIZE", "6")]].concat()).0, Launcher::Pmi);
    }

    #[test]
    fn one_process_is_no_launch_and_broken_variables_are_errors() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        // A batch script of SLURM is one process of however many tasks.
        assert_eq!(of(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")]).unwrap(), None);
        let broken = of(&[("RANK", "zero"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(broken.contains("RANK is \"zero\""), "{broken}");
        let large = of(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(large.contains("RANK is 2 and WORLD_SIZE is 2"), "{large}");
    }

    #[test]
    fn the_first_process_is_found_by_its_address() {
        let of = |variables: &[(&str, &str)]| {
            address(&|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        let plain = [("MASTER_ADDR", "node-0"), ("MASTER_PORT", "29500")];
        assert_eq!(of(&plain).unwrap(), "node-0:29500");
        assert_eq!(of(&[&plain[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat()).unwrap(), "node-0:29501");
        assert!(of(&plain[..1]).unwrap_err().to_string().contains("expected both"));
        assert!(of(&[plain[0], ("MASTER_PORT", "x")]).unwrap_err().to_string().contains("expected a port"));
    }

    #[test]
    fn a_process_has_one_card() {
        assert_eq!(card(1, None, 4).as_deref(), Some("1"));
        assert_eq!(card(5, None, 4).as_deref(), Some("1"));
        assert_eq!(card(1, Some("4,7"), 8).as_deref(), Some("7"));
        assert_eq!(card(1, Some("GPU-a, GPU-b"), 8).as_deref(), Some("GPU-b"));
        for (visible, cards) in [(Some("3"), 8), (Some(""), 8), (None, 1), (None, 0)] {
            assert_eq!(card(1, visible, cards), None);
        }
    }
}
