//! The command line: what can be said, and the help that teaches it.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use holdfast_erasure::CodeMode;

use crate::output::parse_size;

/// Address at which commands look for a volume manager unless told.
pub(crate) const VOLMGR_DEFAULT: &str = "127.0.0.1:7400";
/// Environment variable with another address.
pub(crate) const VOLMGR_VARIABLE: &str = "HOLDFAST_VOLMGR";

const EXAMPLES: &str = "\
Examples:
  holdfast up --mount /mnt/demo            a complete cluster on this machine, mounted; Ctrl-C stops it
  holdfast volume create photos --code 4+2 --quota 100G
  holdfast mount 127.0.0.1:7400/photos /mnt/photos
  umount /mnt/photos
  holdfast volume list
  holdfast destroy --dir ./holdfast-data   removes the cluster and its data

Environment:
  HOLDFAST_VOLMGR   volume manager to talk to (default 127.0.0.1:7400)
  HOLDFAST_LOG      what is logged to stderr, as error, warn, info, debug or module=level (default warn)
  HOLDFAST_KEEP_AWAKE   'yes' keeps the idle cores of a virtual machine from halting while holdfast is busy: small
                    requests take less time, the host sees busy cores (default: 'yes' for up, 'no' for single
                    roles and mounts)";

/// A distributed file system: erasure-coded data, Raft-replicated metadata, one binary.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a complete cluster on this machine, and mount a volume of it
    Up(UpArgs),
    /// Remove a cluster made by `up`, with all its data
    Destroy(DestroyArgs),
    /// Mount a volume
    Mount(MountArgs),
    /// Create, list, show and delete volumes
    Volume(VolumeArgs),
    /// The volume manager: format its directory, serve, administer volumes
    #[command(subcommand)]
    Volmgr(VolmgrCommand),
    /// A metanode: format its directory, serve, bring one back that lost its log
    #[command(subcommand)]
    Metanode(MetanodeCommand),
    /// A datanode: format its directory and disks, serve
    #[command(subcommand)]
    Datanode(DatanodeCommand),
}

const UP_EXAMPLES: &str = "\
Examples:
  holdfast up --mount /mnt/demo
      1 volume manager, 3 metanodes, 6 datanodes in one process, data in ./holdfast-data, volume 'demo'
      with code 4+2. Run again, it finds everything as it was.
  holdfast up --dir /srv/hf --mount /mnt/a --volume a --code 2+1 --datanodes 3
  holdfast up --no-mount --separate-processes
      only the cluster, every role in a process of its own; one that dies is started again.

Ctrl-C flushes, unmounts and stops. A second Ctrl-C does not wait.";

#[derive(Args, Clone, Debug)]
#[command(after_help = UP_EXAMPLES)]
pub(crate) struct UpArgs {
    /// Where the cluster's data is; made if missing
    #[arg(long, value_name = "DIR", default_value = "./holdfast-data")]
    pub(crate) dir: PathBuf,
    /// Where to mount the volume; made if missing
    #[arg(long, value_name = "DIR", required_unless_present = "no_mount", conflicts_with = "no_mount")]
    pub(crate) mount: Option<PathBuf>,
    /// Run the cluster, create the volume, mount nothing
    #[arg(long)]
    pub(crate) no_mount: bool,
    /// Where the volume manager listens; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = VOLMGR_DEFAULT)]
    pub(crate) listen: SocketAddr,
    /// The volume to mount; created unless it is there
    #[arg(long, value_name = "NAME", default_value = "demo")]
    pub(crate) volume: String,
    /// Data and parity shards of the volume, if it is created
    #[arg(long, value_name = "K+M", default_value = "4+2")]
    pub(crate) code: CodeMode,
    /// Quota of the volume, if it is created
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) quota: Option<u64>,
    /// Metanodes to run [default: 3, or as many as there were]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) metanodes: Option<u32>,
    /// Datanodes to run [default: 6, or as many as there were]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) datanodes: Option<u32>,
    /// Run every role as a process of its own; one that dies is started again
    #[arg(long)]
    pub(crate) separate_processes: bool,
    /// Print one line of JSON when ready, and one for each event after it
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct DestroyArgs {
    /// The cluster's directory, as given to `up`
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

const MOUNT_EXAMPLES: &str = "\
Examples:
  holdfast mount 127.0.0.1:7400/demo /mnt/demo
  holdfast mount 127.0.0.1:7400/demo /mnt/demo -o ro,memory=256M
  umount /mnt/demo

As mount.fuse.holdfast (a link to this binary in /sbin), it serves mount(8) and fstab:
  127.0.0.1:7400/demo  /mnt/demo  fuse.holdfast  _netdev,ro  0 0

Options: ro, rw, memory=SIZE (budget of this mount's caches and unwritten data, default 512M).
Options that mount(8) itself handles (defaults, nofail, _netdev, x-...) are accepted.";

#[derive(Args, Debug)]
#[command(after_help = MOUNT_EXAMPLES)]
pub(crate) struct MountArgs {
    /// The volume manager and the volume, as HOST:PORT/VOLUME
    #[arg(value_name = "HOST:PORT/VOLUME")]
    pub(crate) source: String,
    /// The mount point, an empty directory
    #[arg(value_name = "DIR")]
    pub(crate) target: PathBuf,
    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground until unmounted
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Print one line of JSON when mounted
    #[arg(long)]
    pub(crate) json: bool,
    /// As mount(8) passes it on; without effect
    #[arg(short = 't', hide = true)]
    pub(crate) fs_type: Option<String>,
    /// As mount(8) passes it on: unknown options are ignored
    #[arg(short = 's', hide = true)]
    pub(crate) sloppy: bool,
    /// As mount(8) passes it on; without effect
    #[arg(short = 'n', hide = true)]
    pub(crate) no_mtab: bool,
    /// As mount(8) passes it on; without effect
    #[arg(short = 'v', hide = true)]
    pub(crate) verbose: bool,
}

const VOLUME_EXAMPLES: &str = "\
Examples:
  holdfast volume create photos                        code 4+2, no quota
  holdfast volume create scratch --code 2+1 --quota 500G
  holdfast volume create copies --code 1+2             three copies
  holdfast volume list --json
  holdfast volume delete scratch --volmgr 10.0.0.1:7400";

#[derive(Args, Debug)]
#[command(after_help = VOLUME_EXAMPLES)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    pub(crate) command: VolumeCommand,
    /// The volume manager [default: $HOLDFAST_VOLMGR, else 127.0.0.1:7400]
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(crate) volmgr: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume; returns when it can be mounted
    Create {
        /// Its name: letters, digits, '.', '_' and '-'
        name: String,
        /// Data and parity shards: any M disks may fail; needs K+M disks
        #[arg(long, value_name = "K+M", default_value = "4+2")]
        code: CodeMode,
        /// Most data it may hold, as 500M, 10G, 2T
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        quota: Option<u64>,
    },
    /// List all volumes
    List,
    /// Show one volume
    Show {
        /// Its name
        name: String,
    },
    /// Delete a volume and everything in it
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolmgrCommand {
    /// Make a directory the home of a new cluster's volume manager
    Format {
        /// The directory; made if missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Serve until told to stop
    Serve {
        /// The formatted directory
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Where to listen; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS", default_value = VOLMGR_DEFAULT)]
        listen: SocketAddr,
        /// Print one line of JSON when ready
        #[arg(long)]
        json: bool,
    },
    /// Create, list, show and delete volumes
    Volume(VolumeArgs),
}

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// The formatted directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Where to listen, reachable by the other nodes; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// The volume manager [default: $HOLDFAST_VOLMGR, else 127.0.0.1:7400]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) volmgr: Option<String>,
    /// Print one line of JSON when ready
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MetanodeCommand {
    /// Make a directory the home of a new metanode
    Format {
        /// The directory; made if missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Serve until told to stop
    Serve(ServeArgs),
    /// Bring a metanode back whose log is gone, from the other replicas of its tables
    Recover(RecoverArgs),
}

const RECOVER_HELP: &str = "\
A metanode without its own whole log must not serve: it has forgotten what it voted. This command gives it
a new log with a snapshot of each of its tables. It is for a metanode that is stopped and says that its log
is missing, another's or damaged; if the log was only moved, put it back instead.

All other replicas of its tables must run, or it waits and says for whom. It may be interrupted and run
again at any time. What is left of the old log is kept in the directory, as consensus-lost-1.

Examples:
  holdfast metanode recover --dir /srv/meta --volmgr 10.0.0.1:7400
  holdfast metanode serve --dir /srv/meta --listen 10.0.0.1:7401 --volmgr 10.0.0.1:7400
  holdfast metanode recover --dir ./holdfast-data/meta-2
      of a cluster that 'holdfast up' runs without this metanode; 'up' starts it when it is back";

#[derive(Args, Debug)]
#[command(after_help = RECOVER_HELP)]
pub(crate) struct RecoverArgs {
    /// The metanode's directory
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The volume manager [default: $HOLDFAST_VOLMGR, else 127.0.0.1:7400]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) volmgr: Option<String>,
    /// Print one line of JSON when it is back
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatanodeCommand {
    /// Make a directory the home of a new datanode, and directories its disks
    Format {
        /// The node's directory; made if missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// A directory on each disk; made if missing
        #[arg(long = "disk", value_name = "DIR", required = true)]
        disks: Vec<PathBuf>,
    },
    /// Serve until told to stop
    Serve {
        #[command(flatten)]
        serve: ServeArgs,
        /// The formatted disks
        #[arg(long = "disk", value_name = "DIR", required = true)]
        disks: Vec<PathBuf>,
    },
}

/// The volume manager to talk to: as told, else from the environment, else the default.
pub(crate) fn volmgr_address(told: Option<String>) -> String {
    told.or_else(|| std::env::var(VOLMGR_VARIABLE).ok().filter(|value| !value.is_empty()))
        .unwrap_or_else(|| VOLMGR_DEFAULT.to_owned())
}

/// The words of the command line with the role first that the binary's name stands for, busybox style.
pub(crate) fn words_by_name(words: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let called = words.first().map(PathBuf::from).unwrap_or_default();
    let role = match called.file_name().and_then(|name| name.to_str()) {
        Some(role @ ("volmgr" | "metanode" | "datanode")) => role,
        Some("mount.fuse.holdfast" | "mount.holdfast") => "mount",
        _ => return words,
    };
    ["holdfast", role].into_iter().map(Into::into).chain(words.into_iter().skip(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Cli {
        let words = line.split_whitespace().map(Into::into).collect();
        Cli::try_parse_from(words_by_name(words)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_names_of_roles_act_as_them() {
        assert!(matches!(parse("/usr/bin/volmgr volume list").command, Command::Volmgr(VolmgrCommand::Volume(_))));
        assert!(matches!(parse("datanode serve --dir d --disk x").command, Command::Datanode(_)));
        let mounted = parse("/sbin/mount.fuse.holdfast h:1/v /mnt -n -o rw,noauto -s");
        let Command::Mount(mount) = mounted.command else { panic!("no mount") };
        assert_eq!((mount.source.as_str(), &mount.options[..]), ("h:1/v", &["rw".to_owned(), "noauto".to_owned()][..]));
        assert!(matches!(parse("holdfast volume create v --code 8+4 --json").command, Command::Volume(_)));
    }

    #[test]
    fn a_metanode_is_recovered_by_its_directory() {
        assert!(Cli::try_parse_from(["holdfast", "metanode", "recover"]).is_err());
        let Command::Metanode(MetanodeCommand::Recover(args)) = parse("metanode recover --dir d --json").command else {
            panic!("no recovery")
        };
        assert!(args.json && args.volmgr.is_none());
    }

    #[test]
    fn up_wants_a_mount_point_or_to_be_told_that_there_is_none() {
        assert!(Cli::try_parse_from(["holdfast", "up"]).is_err());
        assert!(Cli::try_parse_from(["holdfast", "up", "--no-mount"]).is_ok());
        assert!(Cli::try_parse_from(["holdfast", "up", "--no-mount", "--mount", "/m"]).is_err());
    }
}
