//! Commands and flags.

use crate::daemon::Paths;
use crate::pantavisor::Revision;
use clap::{Args as ClapArgs, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// The usual directory of the API's socket.
pub(crate) use crate::runner::network::RUN_DIR;

/// The network of a container device.
#[derive(Debug, Parser)]
#[command(name = "pv-net", version, about, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub places: Places,
    /// Print JSON, as the API answers it
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Where things live.
#[derive(Debug, ClapArgs)]
pub struct Places {
    /// The device's configuration
    #[arg(long, global = true, env = "PV_NET_CONFIG", value_name = "FILE", default_value = "/etc/pv-net/device.json")]
    pub config: PathBuf,
    /// Declared containers: NAME/run.json
    #[arg(
        long,
        global = true,
        env = "PV_NET_CONTAINERS",
        value_name = "DIR",
        default_value = "/etc/pv-net/containers"
    )]
    pub containers: PathBuf,
    /// A revision of Pantavisor to take the configuration from, in place of the two: DIR/device.json, DIR/NAME/run.json
    #[arg(
        long,
        global = true,
        env = "PV_NET_PANTAVISOR",
        value_name = "DIR",
        conflicts_with_all = ["config", "containers"]
    )]
    pub pantavisor: Option<PathBuf>,
    /// Pantavisor's control socket, which is told that a revision's network is ready
    #[arg(long, global = true, env = "PV_NET_PV_CTRL", value_name = "FILE", default_value = "/pantavisor/pv-ctrl")]
    pub pv_ctrl: PathBuf,
    /// LXC's containers: NAME/config, whose addresses nobody else is given (lxc.lxcpath)
    #[arg(long, global = true, env = "PV_NET_LXC_PATH", value_name = "DIR", default_value = "/var/lib/lxc")]
    pub lxc_path: PathBuf,
    /// State that survives a reboot
    #[arg(long, global = true, env = "PV_NET_STATE_DIR", value_name = "DIR", default_value = "/var/lib/pv-net")]
    pub state_dir: PathBuf,
    /// API socket and lock
    #[arg(long, global = true, env = "PV_NET_RUN_DIR", value_name = "DIR", default_value = RUN_DIR)]
    pub run_dir: PathBuf,
    /// Directory for pins, on a BPF file system
    #[arg(long, global = true, env = "PV_NET_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/pv-net")]
    pub bpffs: PathBuf,
    /// Cgroup for the socket hooks
    #[arg(long, global = true, env = "PV_NET_CGROUP", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup: PathBuf,
    /// The device's resolver configuration, whose servers answer what pools have no servers for
    #[arg(long, global = true, env = "PV_NET_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
}

impl From<Places> for Paths {
    fn from(p: Places) -> Self {
        let (config, containers) = match &p.pantavisor {
            Some(dir) => (dir.join("device.json"), dir.clone()),
            None => (p.config, p.containers),
        };
        Self {
            config,
            containers,
            revision: p.pantavisor.map(|dir| Revision { dir, control: p.pv_ctrl }),
            lxc: p.lxc_path,
            state_dir: p.state_dir,
            run_dir: p.run_dir,
            bpffs: p.bpffs,
            cgroup: p.cgroup,
            resolv_conf: p.resolv_conf,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon in the foreground; SIGHUP reloads, SIGTERM stops it and leaves the data plane working
    Run {
        /// Start the runner too, unless it runs already: where no service manager does that
        #[arg(long)]
        runner: bool,
    },
    /// Run the runner in the foreground: it starts and stops containers for the daemon, and its end ends none
    #[command(name = crate::runner::SUBCOMMAND)]
    Runner,
    /// Validate device.json, run.json and services.json files, or with --pantavisor a revision; changes nothing
    Check {
        /// Files to check
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Attach a container
    Attach {
        /// Its name
        name: String,
        #[command(flatten)]
        what: AttachArg,
        /// Give it one interface, eth0, in this pool; with --interface, the pool of that one
        #[arg(long, value_name = "POOL", conflicts_with = "run")]
        pool: Option<String>,
        /// Its run.json; the declared one unless given
        #[arg(long, value_name = "FILE")]
        run: Option<PathBuf>,
        /// Detach it when none of its interfaces is there any more, as when its namespace is gone
        #[arg(long, conflicts_with = "interface")]
        auto_detach: bool,
        #[command(flatten)]
        interface: InterfaceArgs,
    },
    /// Detach a container, or one of its interfaces, and release its leases
    Detach {
        /// Its name
        name: String,
        /// Only this interface of it
        #[arg(long, value_name = "IF")]
        interface: Option<String>,
    },
    /// The daemon: what it adopted, counters, conditions
    Status,
    /// Pools
    Pools,
    /// Containers and their interfaces; starting and stopping them
    #[command(args_conflicts_with_subcommands = true)]
    Containers {
        /// Only this one
        name: Option<String>,
        #[command(subcommand)]
        command: Option<ContainersCommand>,
    },
    /// Leases of containers, and of clients of DHCP
    Leases,
    /// Published ports
    Ports,
    /// Services that containers offer, and their names
    Services,
    /// The flow table
    Flows {
        /// Print it again every second
        #[arg(long)]
        follow: bool,
    },
    /// Rules, and why a packet would pass or not
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// What would be answered about a name, and where that comes from
    Resolve {
        /// The name; one label is a name in the device's domain
        name: String,
        /// The container that asks; the device, which sees all names, unless given
        #[arg(long, value_name = "CONTAINER")]
        from: Option<String>,
        /// Type of the records, such as PTR; A and AAAA unless given
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
    },
    /// Dropped packets, refused ports and changes as they happen
    Monitor {
        /// Questions for names and their answers instead: who asked, what was answered, where that came from, and how long
        /// it took
        #[arg(long)]
        dns: bool,
    },
    /// What a reload would do: its steps, the pools, ports, rules and leases that change, the flows that end
    Plan,
    /// Read the configuration again
    Reload {
        /// Only say what would be done, as `plan` does
        #[arg(long)]
        dry_run: bool,
    },
    /// LXC: the lines that start a declared container in its pools
    Lxc {
        #[command(subcommand)]
        command: LxcCommand,
    },
    /// OCI runtimes: a bundle that starts a declared container in its pools
    Oci {
        #[command(subcommand)]
        command: OciCommand,
    },
    /// Containers of Pantavisor, by its control socket
    Pantavisor {
        #[command(subcommand)]
        command: PantavisorCommand,
    },
    /// What runtimes call when a container starts
    Hook {
        #[command(subcommand)]
        command: HookCommand,
    },
    /// What this device offers, what is missing and what that costs, and which privileges the daemon holds
    Doctor,
    /// Remove everything that pv-net made and stop the daemon
    Down,
    /// Enter namespaces for the daemon, which starts it
    #[command(name = crate::kernel::broker::SUBCOMMAND, hide = true)]
    Broker,
    /// Start a program in a network namespace of its own, for the runner
    #[command(name = crate::runner::launcher::SUBCOMMAND, hide = true)]
    Launch {
        /// The container
        name: String,
        /// The file for the id of its process
        #[arg(long)]
        process: PathBuf,
        /// The container's resolv.conf
        #[arg(long)]
        resolv_conf: PathBuf,
        /// The user and group of the program
        #[arg(long)]
        user: u32,
        /// Wait for the launcher before the program is executed
        #[arg(long)]
        waiting: bool,
        /// The program and its arguments
        #[arg(last = true)]
        words: Vec<OsString>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContainersCommand {
    /// Start a container by the runtime that its run.json names
    Start {
        /// Its name
        name: String,
    },
    /// Ask a container to end, and kill it after the stop_timeout of its run.json
    Stop {
        /// Its name
        name: String,
    },
    /// Stop a container if it runs, and start it: it keeps its addresses
    Restart {
        /// Its name
        name: String,
    },
    /// Run a command in a container by its runtime, without input; its exit status is this one's
    #[command(
        after_help = "A command that a signal has ended has 128 and the signal's number for its exit status. At the \
        time limit the exit status is 124. The command is killed then, with what it has started, as it is when this one is \
        interrupted. Neither daemon nor runner has to run."
    )]
    Exec {
        /// The container
        name: String,
        /// Kill the command after this time
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
        timeout: Option<u32>,
        /// The command; no shell reads it
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Wait until a container has ended, and say how; at the time limit the exit status is 124
    Wait {
        /// Its name
        name: String,
        /// Do not wait longer than this
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// The rules, and whether they are in force
    List,
    /// Whether a flow passes, and what decides that
    Explain {
        /// Who sends: a container, an address, host or world
        from: String,
        /// Who receives
        to: String,
        /// tcp/PORT, udp/PORT or icmp
        #[arg(value_name = "PROTO/PORT")]
        traffic: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum LxcCommand {
    /// Print the lines for a container's configuration
    Config {
        /// The container
        name: String,
        /// Put them into this file, in place of those that are there
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OciCommand {
    /// Write hooks, host name and resolv.conf into a bundle's config.json; once more changes nothing
    Patch {
        /// The bundle's directory
        bundle: PathBuf,
        /// The container
        name: String,
        /// A namespace that exists before the container starts, in place of hooks
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PantavisorCommand {
    /// The containers of the running revision
    List,
    /// Start a container
    Start {
        /// Its name
        name: String,
    },
    /// Stop a container
    Stop {
        /// Its name
        name: String,
    },
    /// Stop a container and start it
    Restart {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum HookCommand {
    /// As lxc.hook.start-host: attach the container
    Lxc {
        /// The container's name; LXC's unless given
        name: Option<String>,
        /// What LXC adds to a hook's line
        #[arg(hide = true)]
        more: Vec<String>,
    },
    /// As createRuntime, with the state on standard input: attach the container
    Oci {
        /// The container's name; unless given, the annotation pv-net.name, or else its id
        name: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct AttachArg {
    /// A file that is the container's network namespace
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,
    /// A process in the container's network namespace
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Add this interface to the container, which is attached
    #[arg(long, value_name = "IF", requires = "pool")]
    pub interface: Option<String>,
}

/// What an interface that is added is to have.
#[derive(Debug, ClapArgs)]
pub(crate) struct InterfaceArgs {
    /// With --interface: the default routes go through it, or with `false` never do
    #[arg(long, value_name = "BOOL", requires = "interface", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub default_route: Option<bool>,
    /// With --interface: its IPv4 address
    #[arg(long, value_name = "ADDRESS", requires = "interface")]
    pub ipv4_address: Option<String>,
    /// With --interface: its IPv6 address
    #[arg(long, value_name = "ADDRESS", requires = "interface")]
    pub ipv6_address: Option<String>,
    /// With --interface: its MAC
    #[arg(long, value_name = "MAC", requires = "interface")]
    pub mac_address: Option<String>,
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_arguments_make_sense() {
        use clap::CommandFactory;
        super::Args::command().debug_assert();
    }
}
